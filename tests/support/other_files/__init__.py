"""Files of many kinds, made by the programs that make them for users, and what file(1) and blkid(8) call them."""

from __future__ import annotations

from tests.support.other_files.archives import ARCHIVES
from tests.support.other_files.disks import DISKS
from tests.support.other_files.file_systems import FILE_SYSTEMS
from tests.support.other_files.images import IMAGES
from tests.support.other_files.makers import OtherFile
from tests.support.other_files.texts import TEXTS

OTHER_FILES: dict[str, OtherFile] = {**TEXTS, **FILE_SYSTEMS, **IMAGES, **DISKS, **ARCHIVES}
"""By a name for tests."""
NO_FILES = ("directory", "fifo", "socket", "device")
"""Those of them that are paths without bytes."""
