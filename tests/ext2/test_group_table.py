"""The table of group descriptors: what it remembers is all there, or nothing."""

from __future__ import annotations

import pytest

from mystfuse.ext2.block_groups import GroupTable
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.superblock import Superblock
from tests.support.commit_failures import failing_allocation
from tests.support.ext2_editor import Editor


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_group_whose_metadata_memory_ran_out_for_is_looked_at_again(image: Editor) -> None:
    data = bytes(image.data)
    superblock = Superblock.parse(data[1024:2048])
    blocks = Blocks(lambda number: data[number * 1024 : (number + 1) * 1024])
    expected = GroupTable(superblock).metadata_runs(blocks, 0)
    number, failures, has_come = 0, 0, True
    while has_come:
        groups = GroupTable(superblock)
        with failing_allocation(number) as failure:
            try:
                groups.descriptor(blocks, 0)
            except MemoryError:
                failures += 1
        has_come = failure.has_come
        assert groups.metadata_runs(blocks, 0) == expected
        number += 1
    assert failures
