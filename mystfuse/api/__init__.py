"""The public Python: images without a mount, mounts, and the pytest plugin."""
