"""The study of knowledge graphs that change."""
