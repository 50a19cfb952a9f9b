"""Measure trained networks: depths, cascades, resolutions, fidelity."""
