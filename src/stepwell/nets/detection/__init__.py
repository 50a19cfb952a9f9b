"""Detectors: torchvision's heads on a pyramid of a nested backbone."""
