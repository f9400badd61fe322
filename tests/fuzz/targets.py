"""All targets by name."""

from __future__ import annotations

from tests.fuzz import (
    targets_ext2,
    targets_ext4,
    targets_fastpath,
    targets_formats,
    targets_images,
    targets_others,
    targets_xattr,
)
from tests.fuzz.harness import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *targets_formats.TARGETS,
        *targets_others.TARGETS,
        *targets_ext2.TARGETS,
        *targets_ext4.TARGETS,
        *targets_xattr.TARGETS,
        *targets_images.TARGETS,
        *targets_fastpath.TARGETS,
    )
}
