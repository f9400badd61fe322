"""Named damage: what e2fsck's passes look for, as far as it can be in plain EXT2, each with what a mount has to answer.

The sorts are those of e2fsprogs' regression tests (tests/f_*: bad superblocks and descriptors, bitmaps, inodes, shared
and outside blocks, directories, htree, extended attributes, links, orphans) and the problems that e2fsck's five passes
name (e2fsck/problem.c). The images are made here.

What is expected is written as "operation path outcome", the path from the root, ``/`` for the root itself; "refused"
and a part of the message for what is not mounted; "writing operation outcome" for what has to come up while writing.
"""

from __future__ import annotations

from tests.corruption import named_directories, named_groups, named_inodes
from tests.corruption.case import CASES

__all__ = ["CASES", "named_directories", "named_groups", "named_inodes"]
