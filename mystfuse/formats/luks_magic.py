"""What a LUKS header begins with: by itself, since most images have none, and what parses one takes long to import."""

from __future__ import annotations

LUKS_MAGIC = b"LUKS\xba\xbe"
