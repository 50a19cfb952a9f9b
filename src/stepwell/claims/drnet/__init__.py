"""The study of dynamic resolution."""
