"""Written blocks: in memory, spilled, and as snapshots."""
