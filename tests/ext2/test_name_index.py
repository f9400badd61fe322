"""The index of a directory's names finds each name where it is after adding, removing and adding again."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.name_index import _RECENT, NameIndex
from mystfuse.kernels.directory_names import name_key


def test_names_are_found_before_and_after_they_are_merged() -> None:
    index = NameIndex(4)
    blocks = 50
    index.add_blocks(blocks, [])
    for logical in range(blocks):
        index.add_names(logical, [b"first-%d-%d" % (logical, number) for number in range(20)])
    names = {b"name-%d" % number: number % blocks for number in range(2 * _RECENT + 10)}
    for name, logical in names.items():
        index.add_name(name, logical)
    assert len(index) == len(names) + 20 * blocks
    for name, logical in names.items():
        assert logical in list(index.candidates(name))
    assert list(index.candidates(b"first-7-3")) == [7]
    assert set(index.blocks_with_names()) == set(range(blocks))


def test_an_index_of_removed_names_is_stale() -> None:
    index = NameIndex(4)
    index.add_blocks(1, [])
    index.add_names(0, [b"%d" % number for number in range(2 * _RECENT)])
    order = random.Random(1).sample(range(2 * _RECENT), 2 * _RECENT)
    for count, number in enumerate(order):
        assert index.is_mostly_stale == (count > _RECENT + _RECENT)
        index.remove_name(b"%d" % number, 0)
    index.remove_name(b"0", 0)
    assert index.is_mostly_stale


def test_names_removed_before_they_are_merged_are_gone() -> None:
    index = NameIndex(4)
    index.add_blocks(1, [])
    for logical in 0, 0:
        index.add_name(b"twice", logical)
    index.remove_name(b"twice", 0)
    assert (len(index), list(index.candidates(b"twice"))) == (1, [0])
    index.remove_name(b"twice", 0)
    assert (len(index), list(index.candidates(b"twice"))) == (0, [])


def test_a_block_that_is_broken_in_the_middle_keeps_the_names_in_front() -> None:
    def names() -> Iterator[bytes]:
        yield b"in front"
        raise CorruptFilesystem("broken here")

    index = NameIndex(4)
    index.add_blocks(2, [])
    index.add_names(0, names())
    index.add_names(1, [b"behind"])
    assert index.damage == "broken here"
    assert list(index.candidates(b"in front")) == [0] and list(index.candidates(b"behind")) == [1]


def test_room_is_an_upper_bound() -> None:
    index = NameIndex(4)
    index.add_blocks(3, [])
    assert index.blocks_with_room(40) == [2, 1, 0], "not known yet: the last ones first"
    for logical, room in enumerate((12, 200, 40)):
        index.set_room(logical, room)
    assert index.blocks_with_room(40) == [1, 2]
    index.raise_room(0, 60)
    index.raise_room(1, 8)
    assert index.blocks_with_room(44) == [0, 1] and index.blocks_with_room(204) == []


def test_a_name_with_many_entries_is_looked_for_once_in_each_block() -> None:
    key = name_key(b"a")
    keys = [array("Q") for _ in range(16)]
    keys[key >> 60] = array("Q", [key | 1] * 1000)
    index = NameIndex(4)
    index.add_blocks(2, keys)
    index.add_names(0, [b"a"] * 500)
    assert len(index) == 1500
    assert sum(map(len, index._keys)) <= 501
    assert list(index.candidates(b"a")) == [0, 1]
    assert sum(map(len, index._keys)) == 2
