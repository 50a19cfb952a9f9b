"""Tasks: how a run opens its data and network, and how it measures and writes its results."""
