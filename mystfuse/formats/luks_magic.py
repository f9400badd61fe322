"""The first bytes of a LUKS header: a module of its own, since importing the parsers takes long and most images need
none."""

from __future__ import annotations

LUKS_MAGIC = b"LUKS\xba\xbe"
LUKS2_SECOND_MAGIC = b"SKUL\xba\xbe"
