"""mystfuse: mount verified, optionally signed EXT2 images, trusting nothing but the hash tree's root."""

__version__ = "0.1.0"
