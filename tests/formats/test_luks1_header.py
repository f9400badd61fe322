"""LUKS1 headers: fields where the specification has them, bad values refused, unsupported features named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import FormatError, UnsupportedFeature
from mystfuse.formats.luks import (
    HASHES,
    MAX_ITERATIONS,
    MAX_STRIPES,
    CipherSpec,
    KeyDigest,
    Keyslot,
    LuksHeader,
    Pbkdf2,
)
from mystfuse.formats.luks1 import keyslot_offset, pack_luks1, parse_luks1, payload_offset_for
from tests.support.luks_headers import CIPHERS, DISABLED, MIB, XTS, check_sane, luks1, luks1_slot, read

U32 = (1 << 32) - 1


def test_the_fields_of_luks1_lie_where_the_specification_has_them() -> None:
    header = parse_luks1(luks1({5: luks1_slot(iterations=77, salt=b"\x44" * 32, offset=600, stripes=12)}))
    assert header == LuksHeader(
        version=1,
        uuid="01234567-89ab-cdef-0123-456789abcdef",
        cipher=CipherSpec("xts", "plain64"),
        key_sizes=(64,),
        payload_offset=2 * MIB,
        payload_size=None,
        sector_size=512,
        iv_tweak=0,
        keyslots=(
            Keyslot(0, Pbkdf2("sha256", b"\x11" * 32, 1000), 64, XTS, 64, 4096, 4000, "sha256"),
            Keyslot(5, Pbkdf2("sha256", b"\x44" * 32, 77), 64, XTS, 64, 600 * 512, 12, "sha256"),
        ),
        digest=KeyDigest(Pbkdf2("sha256", b"\x33" * 32, 1000), b"\x22" * 20),
    )


@st.composite
def luks1_headers(draw: st.DrawFn) -> LuksHeader:
    cipher_name = draw(st.sampled_from(list(CIPHERS)))
    cipher, key_size = CipherSpec.parse(cipher_name), draw(st.sampled_from(CIPHERS[cipher_name]))
    hash_name, salts = draw(st.sampled_from(list(HASHES))), st.binary(min_size=32, max_size=32)
    iterations = st.integers(1, MAX_ITERATIONS // 4)
    slots = [
        Keyslot(
            number,
            Pbkdf2(hash_name, draw(salts), draw(iterations)),
            key_size,
            cipher,
            key_size,
            keyslot_offset(number, key_size),
            draw(st.integers(1, 4000)),
            hash_name,
        )
        for number in sorted(draw(st.sets(st.integers(0, 7))))
    ]
    return LuksHeader(
        version=1,
        uuid=draw(st.uuids()).hex,
        cipher=cipher,
        key_sizes=(key_size,),
        payload_offset=payload_offset_for(key_size),
        payload_size=None,
        sector_size=512,
        iv_tweak=0,
        keyslots=tuple(slots),
        digest=KeyDigest(Pbkdf2(hash_name, draw(salts), draw(iterations)), draw(st.binary(min_size=20, max_size=20))),
    )


@given(luks1_headers())
def test_a_luks1_header_is_read_back_as_it_was_written(header: LuksHeader) -> None:
    packed = pack_luks1(header)
    assert len(packed) == 592
    assert parse_luks1(packed) == header
    assert read(packed.ljust(8 * MIB, b"\0")) == header


def test_a_luks1_header_is_written_as_cryptsetup_does() -> None:
    header = parse_luks1(luks1())
    disabled = {
        number: luks1_slot(active=0xDEAD, iterations=0, salt=b"", offset=8 + 504 * number) for number in range(1, 8)
    }
    # A slot of 64 * 4000 bytes takes 504 sectors: 500 rounded up to 4 KiB.
    assert pack_luks1(header) == luks1(disabled)
    assert payload_offset_for(64) == 2 * MIB and payload_offset_for(32) == 2 * MIB


BAD_LUKS1: dict[str, tuple[bytes, str]] = {
    "magic": (luks1(magic=b"LUKS\xba\xbf"), "not a LUKS1"),
    "version 2": (luks1(version=2), "not a LUKS1"),
    "key_bytes 0": (luks1(key_bytes=0), "0 bytes for aes-xts-plain64"),
    "key_bytes 15": (luks1(key_bytes=15), "15 bytes for aes-xts-plain64"),
    "key_bytes 16, for XTS": (luks1(key_bytes=16), "16 bytes"),
    "key_bytes 64, for CBC": (luks1(key_bytes=64, cipher_mode=b"cbc-plain"), "64 bytes for aes-cbc-plain"),
    "key_bytes 2^32-1": (luks1(key_bytes=U32), "4294967295 bytes"),
    "digest iterations 0": (luks1(mk_digest_iter=0), "0 PBKDF2"),
    "digest iterations 2^32-1": (luks1(mk_digest_iter=U32), "4294967295 PBKDF2"),
    "digest iterations too many": (luks1(mk_digest_iter=MAX_ITERATIONS + 1), "100000001 PBKDF2"),
    "slot iterations 0": (luks1({3: luks1_slot(iterations=0)}), "0 PBKDF2"),
    "slot iterations 2^32-1": (luks1({3: luks1_slot(iterations=U32)}), "4294967295 PBKDF2"),
    "stripes 0": (luks1({3: luks1_slot(stripes=0)}), "slot 3: 0 stripes"),
    "stripes 2^32-1": (luks1({3: luks1_slot(stripes=U32)}), "slot 3: 4294967295 stripes"),
    "stripes too many": (luks1({3: luks1_slot(stripes=MAX_STRIPES + 1)}), "slot 3: 65537 stripes"),
    "material at 0": (luks1({3: luks1_slot(offset=0)}), "slot 3: its key material"),
    "material in the header": (luks1({3: luks1_slot(offset=1)}), "slot 3: its key material"),
    "material at 2^32-1": (luks1({3: luks1_slot(offset=U32)}), "slot 3: its key material"),
    "material in the payload": (luks1({3: luks1_slot(offset=4096)}), "slot 3: its key material"),
    "material over the payload's begin": (luks1({3: luks1_slot(offset=4096 - 499)}), "slot 3: its key material"),
    "payload at 0": (luks1(payload_offset=0), "payload"),
    "payload in the header": (luks1(payload_offset=1), "payload"),
    "payload at 0, no slot": (luks1({0: DISABLED}, payload_offset=0), "in the header"),
    "payload in the header, no slot": (luks1({0: DISABLED}, payload_offset=1), "in the header"),
    "payload before the material": (luks1(payload_offset=8), "key material"),
    "slot neither enabled nor disabled": (luks1({7: luks1_slot(active=0x00AC71F4)}), "slot 7: neither"),
    "slot active 0": (luks1({7: luks1_slot(active=0)}), "0x00000000"),
    "slot active 2^32-1": (luks1({7: luks1_slot(active=U32)}), "0xffffffff"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LUKS1)
def test_an_impossible_luks1_header_is_refused(case: str) -> None:
    header, said = BAD_LUKS1[case]
    with pytest.raises(FormatError, match=said) as caught:
        parse_luks1(header)
    assert not isinstance(caught.value, UnsupportedFeature)


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"cipher_name": b"twofish"}, "twofish-xts-plain64"),
        ({"cipher_name": b"AES"}, "AES-xts-plain64"),
        ({"cipher_name": b""}, "'-xts-plain64'"),
        ({"cipher_mode": b"lrw-benbi"}, "aes-lrw-benbi"),
        ({"cipher_mode": b"xts-plain65"}, "aes-xts-plain65"),
        ({"cipher_mode": b"xts-essiv:sha256"}, "aes-xts-essiv:sha256"),
        ({"cipher_mode": b"cbc-essiv:sha1"}, "aes-cbc-essiv:sha1"),
        ({"cipher_mode": b"plain"}, "aes-plain"),
        ({"cipher_mode": b""}, "'aes-'"),
        ({"cipher_mode": b"x" * 32}, "aes-" + "x" * 32),
        ({"hash_spec": b"whirlpool"}, "whirlpool"),
        ({"hash_spec": b"md5"}, "md5"),
        ({"hash_spec": b""}, "''"),
        ({"cipher_name": b"a\xe9s\x1b[2J\n"}, r"a\\xe9s\x1b[2J\n"),
        ({"hash_spec": b"\xff" * 32}, r"\\xff"),
    ],
)
def test_unsupported_features_of_luks1_are_named(fields: dict[str, bytes], named: str) -> None:
    for slots in (None, {0: DISABLED}):
        with pytest.raises(UnsupportedFeature) as caught:
            parse_luks1(luks1(slots, **fields))
        assert named in str(caught.value)
        assert str(caught.value).isprintable()


def test_extremes_of_luks1_that_can_be_are_read() -> None:
    header = parse_luks1(
        luks1({0: luks1_slot(stripes=1, iterations=1, offset=2), 1: luks1_slot(stripes=4000, offset=4096 - 500)})
    )
    assert [slot.stripes for slot in header.keyslots] == [1, 4000]
    # The fields of an inactive slot do not count.
    garbage = luks1_slot(active=0xDEAD, iterations=U32, offset=U32, stripes=U32)
    assert parse_luks1(luks1(dict.fromkeys(range(8), garbage))).keyslots == ()
    assert parse_luks1(luks1(hash_spec=b"SHA512")).digest.kdf.hash_name == "sha512"
    assert parse_luks1(luks1(uuid=b"\xff\n" * 20)).uuid == "\\xff\n" * 20
    for name, sizes in CIPHERS.items():
        for size in sizes:
            mode = name.removeprefix("aes-").encode()
            parsed = parse_luks1(luks1(cipher_mode=mode, key_bytes=size))
            assert (str(parsed.cipher), parsed.key_sizes) == (name, (size,))


def test_a_luks1_header_cut_short_is_refused() -> None:
    whole = luks1()
    for length in range(592):
        with pytest.raises(FormatError):
            parse_luks1(whole[:length])
        if length >= 8:
            with pytest.raises(FormatError):
                read(whole[:length])
    assert parse_luks1(whole + b"anything") == parse_luks1(whole)


@given(st.lists(st.tuples(st.integers(0, 591), st.integers(1, 255)), min_size=1, max_size=6))
def test_bytes_flipped_in_a_luks1_header_raise_format_errors_or_nothing(flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(luks1())
    for position, mask in flips:
        damaged[position] ^= mask
    try:
        header = parse_luks1(bytes(damaged))
        header.check_fits(16 * MIB)
    except FormatError:
        return
    check_sane(header)


def test_payload_and_key_material_must_be_there() -> None:
    header = parse_luks1(luks1())
    assert header.check_fits(2 * MIB + 512) == 512
    assert header.check_fits(2 * MIB + 5000) == 4608
    for size in (0, 1, 592, 4096, MIB, 2 * MIB - 512, 2 * MIB):
        with pytest.raises(FormatError):
            header.check_fits(size)
    far = parse_luks1(luks1(payload_offset=U32))
    assert far.payload_offset == U32 * 512
    for size in (0, 16 * MIB, U32 * 512):
        with pytest.raises(FormatError, match="truncated"):
            far.check_fits(size)
    assert far.check_fits(U32 * 512 + 512) == 512


def test_a_payload_of_a_given_size_must_fit() -> None:
    header = replace(parse_luks1(luks1()), payload_size=8192, sector_size=4096)
    assert header.check_fits(2 * MIB + 8192) == 8192
    assert header.check_fits(3 * MIB) == 8192
    for size in (2 * MIB, 2 * MIB + 4096, 2 * MIB + 8191):
        with pytest.raises(FormatError):
            header.check_fits(size)
