"""On-disk structures around the file system: bytes in, dataclass out, and back. No I/O, no trust, no crypto."""
