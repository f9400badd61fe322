"""Making images: mkext2, commit, the hash tree, the seal."""
