"""Measurements of speed, as ratios within one run. Each module has a `measure()` of its own."""
