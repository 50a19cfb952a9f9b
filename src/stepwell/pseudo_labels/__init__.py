"""Boxes that other detectors predict, as labels: teachers, classes, fusion, thresholds, a store."""
