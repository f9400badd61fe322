"""The fssig: reading gives back the written fields, and values out of bounds are refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import ExitStatus, FormatError, UnsupportedFeature
from mystfuse.formats.fssig import FSSIG_SIZE, Fssig, has_fssig_magic
from tests.support.format_values import damaged, patched

FSSIG = Fssig(0x123456, hashlib.sha256(b"root").digest(), hashlib.sha256(b"signer").digest(), b"\xab" * 384)

FSSIGS = st.builds(
    Fssig,
    st.integers(1, (1 << 63) - 1),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=1024),
)


@given(FSSIGS)
def test_an_fssig_is_read_back_as_it_was_written(fssig: Fssig) -> None:
    packed = fssig.pack()
    assert len(packed) == 4096
    assert Fssig.parse(packed) == fssig
    assert has_fssig_magic(packed)


def test_the_fields_of_an_fssig_lie_where_the_original_has_them() -> None:
    packed = FSSIG.pack()
    assert packed[0:8] == bytes.fromhex("384d6253a19851f5")
    assert packed[8:16] == b"\1" + bytes(7)
    assert packed[16:24] == bytes.fromhex("5634120000000000")
    assert packed[24:56] == FSSIG.root_hash
    assert packed[56:88] == FSSIG.signer
    assert packed[88:1112] == FSSIG.signature + bytes(1024 - 384)
    assert packed[1112:1120] == (384).to_bytes(8, "little")
    assert packed[1120:] == bytes(2976)


def test_an_fssig_is_not_read_past_its_signature_size() -> None:
    data = patched(FSSIG.pack(), 1112, "<Q", 5)
    assert Fssig.parse(data).signature == b"\xab" * 5
    unsigned = Fssig.parse(patched(FSSIG.pack(), 1112, "<Q", 0))
    assert unsigned.signature == b""
    assert not unsigned.is_signed
    assert FSSIG.is_signed


@pytest.mark.parametrize("size", [1025, 2976, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_a_signature_size_past_the_field_is_an_error_not_a_slice(size: int) -> None:
    with pytest.raises(FormatError, match=f"signature_size is {size}"):
        Fssig.parse(patched(FSSIG.pack(), 1112, "<Q", size))


def test_a_signature_may_fill_its_field() -> None:
    full = replace(FSSIG, signature=bytes(range(256)) * 4)
    assert Fssig.parse(full.pack()) == full


@pytest.mark.parametrize("hash_offset", [0, 1 << 63, (1 << 64) - 1])
def test_an_impossible_hash_offset_is_refused(hash_offset: int) -> None:
    with pytest.raises(FormatError, match=f"hash_offset {hash_offset}"):
        Fssig.parse(patched(FSSIG.pack(), 16, "<Q", hash_offset))


@pytest.mark.parametrize("hash_offset", [1, (1 << 63) - 1])
def test_the_outermost_hash_offsets_are_read(hash_offset: int) -> None:
    assert Fssig.parse(patched(FSSIG.pack(), 16, "<Q", hash_offset)).hash_offset == hash_offset


@pytest.mark.parametrize("byte", range(8))
def test_an_fssig_with_another_magic_is_none(byte: int) -> None:
    data = bytearray(FSSIG.pack())
    data[byte] ^= 1
    assert not has_fssig_magic(bytes(data))
    with pytest.raises(FormatError, match="no fssig"):
        Fssig.parse(bytes(data))


@pytest.mark.parametrize("data", [b"", bytes(7), bytes(8), FSSIG.pack()[:7]])
def test_too_little_data_has_no_fssig_magic(data: bytes) -> None:
    assert not has_fssig_magic(data)


@pytest.mark.parametrize("version", [0, 2, 1 << 32, (1 << 64) - 1])
def test_an_fssig_of_another_version_is_reported_as_unsupported(version: int) -> None:
    with pytest.raises(UnsupportedFeature, match=f"version {version}") as caught:
        Fssig.parse(patched(FSSIG.pack(), 8, "<Q", version))
    assert caught.value.exit_status == ExitStatus.FORMAT


@pytest.mark.parametrize("length", [0, 1120, 4095, 4097, 8192])
def test_an_fssig_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(FormatError, match=f"{length} bytes long"):
        Fssig.parse(FSSIG.pack().ljust(length, b"\0")[:length])


@given(damaged(FSSIG.pack()) | st.binary(max_size=100) | st.binary(min_size=FSSIG_SIZE, max_size=FSSIG_SIZE))
def test_any_bytes_are_an_fssig_or_a_format_error(data: bytes) -> None:
    try:
        fssig = Fssig.parse(data)
    except FormatError:
        return
    assert 0 < fssig.hash_offset < 1 << 63
    assert len(fssig.signature) <= 1024
    assert Fssig.parse(fssig.pack()) == fssig


@pytest.mark.parametrize("wrong", [{"root_hash": bytes(31)}, {"signer": bytes(33)}, {"signature": bytes(1025)}])
def test_an_fssig_with_fields_of_the_wrong_length_is_not_written(wrong: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="wrong length"):
        replace(FSSIG, **wrong).pack()


def test_the_fields_are_shown_in_the_order_and_spelling_of_the_original() -> None:
    assert list(FSSIG.fields().items()) == [
        ("magic", "f55198a153624d38"),
        ("version", 1),
        ("hash_offset", 0x123456),
        ("root_hash", FSSIG.root_hash.hex()),
        ("signer", FSSIG.signer.hex()),
        ("signature", "ab" * 384),
        ("signature_size", 384),
    ]
    unsigned = Fssig(4096, bytes(32)).fields()
    assert (unsigned["signer"], unsigned["signature"], unsigned["signature_size"]) == (None, None, 0)
