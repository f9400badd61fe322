"""``scripts/soak``: a mount under mixed load for a long time, and whether it kept its promises."""
