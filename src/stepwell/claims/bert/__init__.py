"""Distillation from BERT's internal representations: claims, arms, and small data for quick runs."""
