"""The study of fidelity."""
