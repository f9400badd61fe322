"""Fssig and verity superblock of an image elsewhere, which no digest covers: a cache that changes them costs a
fetch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mystfuse.devices.remote_source import RemoteSource
from mystfuse.errors import FormatError, NotTrusted
from mystfuse.formats.fssig import FSSIG_SIZE, Fssig
from mystfuse.formats.verity import VeritySuperblock
from mystfuse.image.identify import identify
from mystfuse.image.open import TrustedImage, open_image
from mystfuse.remote.protocol import Question, Read
from mystfuse.trust.policy import TrustPolicy
from mystfuse.trust.signature import PublicKey
from tests.support.images import DATA
from tests.support.stand_in_fetcher import StandInFetcher, stand_in_fetcher
from tests.support.verity_images import build

POLICY = TrustPolicy(public_keys=(PublicKey.from_pem((DATA / "public.pem").read_bytes(), "public.pem"),))


@pytest.fixture(scope="module")
def content(golden: dict[str, Path]) -> bytes:
    return golden["signed-4096"].read_bytes()


@contextmanager
def cached_as(spoiled: bytes, right: bytes, is_shared: bool = True) -> Iterator[tuple[RemoteSource, StandInFetcher]]:
    with stand_in_fetcher(spoiled) as (client, fetcher):
        fetcher.elsewhere = right
        yield RemoteSource(client, 20, is_shared), fetcher


def fssig_of(content: bytes) -> Fssig:
    return Fssig.parse(content[-FSSIG_SIZE:])


def changed(content: bytes, offset: int, piece: bytes) -> bytes:
    return content[:offset] + piece + content[offset + len(piece) :]


def superblock_changed(content: bytes, **fields: object) -> bytes:
    offset = fssig_of(content).hash_offset
    superblock = VeritySuperblock.parse(content[offset : offset + 512])
    return changed(content, offset, replace(superblock, **fields).pack())  # type: ignore[arg-type]


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda content: content,
    "the fssig is zeros": lambda content: content[:-FSSIG_SIZE] + bytes(FSSIG_SIZE),
    "the fssig is noise": lambda content: content[:-FSSIG_SIZE] + random.Random(1).randbytes(FSSIG_SIZE),
    "another root hash": lambda content: (
        content[:-FSSIG_SIZE] + replace(fssig_of(content), root_hash=bytes(32)).pack().ljust(FSSIG_SIZE, b"\0")
    ),
    "another place of the tree": lambda content: (
        content[:-FSSIG_SIZE] + replace(fssig_of(content), hash_offset=4096).pack().ljust(FSSIG_SIZE, b"\0")
    ),
    "the superblock is zeros": lambda content: changed(content, fssig_of(content).hash_offset, bytes(512)),
    "another salt": lambda content: superblock_changed(content, salt=b"\1" * 32),
    "another UUID": lambda content: superblock_changed(content, uuid=b"\1" * 16),
    "smaller data blocks": lambda content: superblock_changed(
        content, data_block_size=2048, data_blocks=fssig_of(content).hash_offset // 2048
    ),
    "the top of the tree is zeros": lambda content: changed(content, fssig_of(content).hash_offset + 4096, bytes(4096)),
}


def fields_of(image: TrustedImage) -> object:
    return image.trust.root_hash, image.trust.reason, image.tree and image.tree.superblock


@pytest.mark.parametrize("what", SPOILED)
def test_what_a_cache_has_changed_is_read_again(content: bytes, what: str) -> None:
    with cached_as(content, content) as (source, _):
        right = fields_of(open_image(source, POLICY))
    with cached_as(SPOILED[what](content), content) as (source, _):
        image = open_image(source, POLICY)
        assert fields_of(image) == right
        assert image.source is source


def test_a_cache_that_is_right_again_when_it_is_looked_at_once_more(content: bytes) -> None:
    with cached_as(SPOILED["the superblock is zeros"](content), content) as (source, fetcher):

        def mend(question: Question) -> bool:
            if isinstance(question, Read) and question.again:
                fetcher.content[:] = content
                fetcher.store(0, len(content))
            return False

        fetcher.answers = mend
        assert open_image(source, POLICY).tree is not None


def test_what_it_is_called_is_not_the_caches_word(content: bytes) -> None:
    with cached_as(content, content) as (source, fetcher):
        right = identify(source)
        assert right.is_image and len(fetcher.asked) < 10
    for what in SPOILED:
        with cached_as(SPOILED[what](content), content) as (source, _):
            assert identify(source) == right


def test_a_cache_of_its_own_is_not_doubted_without_a_reason(content: bytes) -> None:
    with cached_as(content, content, is_shared=False) as (source, fetcher):
        open_image(source, POLICY)
        assert not [question for question in fetcher.asked if isinstance(question, Read) and question.again]


def vouched(seed: int) -> bytes:
    """An image with an fssig, without a signature; all have the same size."""
    superblock = VeritySuperblock(64, b"", b"\1" * 16, 1, "sha256", 4096, 4096).with_vouching_salt()
    image = build(64, salt=superblock.salt, seed=seed)
    return bytes(image.content) + Fssig(image.data_size, image.root_hash).pack()


def test_another_trusted_image_in_a_shared_cache_is_not_the_one_that_was_named() -> None:
    named, older = vouched(1), vouched(2)
    policy = TrustPolicy(frozenset({fssig_of(named).root_hash, fssig_of(older).root_hash}))
    with stand_in_fetcher(older, opens=False) as (client, fetcher):
        fetcher.elsewhere, fetcher.tail = named, named[-FSSIG_SIZE:]
        fetcher.open()
        fetcher.start()
        source = RemoteSource(client, 20, has_shared_cache=True)
        for _ in range(2):
            # The second time, what was read is in the data file.
            assert open_image(source, policy).trust.root_hash == fssig_of(named).root_hash
        assert source.read(len(named) - 5000, 5000)[-FSSIG_SIZE:] == named[-FSSIG_SIZE:]
        assert source.read(len(named) - 10, 3) == named[-10:-7]


def test_one_of_two_mirrors_that_lies_is_not_the_last_one_asked(content: bytes) -> None:
    spoiled = SPOILED["the superblock is zeros"](content)
    with stand_in_fetcher(spoiled) as (client, fetcher):

        def lie_first(question: Question) -> bool:
            assert isinstance(question, Read)
            places = [other.offset for other in fetcher.asked if isinstance(other, Read) and other.again]
            fetcher.elsewhere = spoiled if places.count(question.offset) == 1 else content
            return False

        fetcher.answers = lie_first
        source = RemoteSource(client, 20, has_shared_cache=True, has_mirrors=True)
        assert open_image(source, POLICY).tree is not None


def test_what_is_wrong_elsewhere_too_is_refused_as_a_file_would_be(content: bytes) -> None:
    spoiled = SPOILED["the superblock is zeros"](content)
    with cached_as(spoiled, spoiled) as (source, _), pytest.raises(FormatError, match="no verity superblock"):
        open_image(source, POLICY)
    with cached_as(content, content) as (source, fetcher):
        with pytest.raises(NotTrusted):
            open_image(source, TrustPolicy(frozenset({bytes(32)})))
        assert len(fetcher.asked) < 10


def test_a_tree_that_the_options_name(content: bytes) -> None:
    image = build(64)
    spoiled = bytearray(image.content)
    spoiled[image.data_size : image.data_size + 512] = bytes(512)
    with cached_as(bytes(spoiled), bytes(image.content)) as (source, _):
        opened = open_image(source, TrustPolicy(), image.data_size, image.root_hash)
        assert opened.tree is not None and opened.tree.superblock == image.superblock
