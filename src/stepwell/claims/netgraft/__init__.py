"""The study of grafting."""
