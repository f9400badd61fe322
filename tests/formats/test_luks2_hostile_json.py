"""LUKS2's JSON area: with any part missing, of another type or damaged, it is a FormatError or a header within
bounds."""

from __future__ import annotations

import copy as copying
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import FormatError
from tests.support.luks_headers import MIB, changed, check_sane, document, luks2, luks2_copy, parse, read, with_checksum


@pytest.mark.parametrize(
    "path",
    [
        "keyslots 0 af stripes",
        "keyslots 0 kdf time",
        "keyslots 0 kdf cpus",
        "keyslots 1 kdf iterations",
        "keyslots 1 priority",
        "digests 0 iterations",
    ],
)
@pytest.mark.parametrize("value", [True, "1", 1.0, [1], None])
def test_what_python_takes_for_a_one_is_none(path: str, value: Any) -> None:
    parse(changed(path, 1))
    with pytest.raises(FormatError):
        parse(changed(path, value))


BAD_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 7, 513, 1 << 31, 1 << 40, 1 << 62, 1 << 63, 1 << 64, -(1 << 63), 10**400,
    0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "0", "1", "-1", "x", "dynamic", "luks2", "aes-ecb", "aes-cbc-plain", "pbkdf2", "argon2i", "sha1",
    "9" * 20, str(1 << 62), "99999999999999999999999", "\0", "é", "\ud800", "a" * 100_000, "AAAA", "A", "====",
    [], [None], [1], ["0"], ["0", 1], [["0"]], [{}], {}, {"0": {}}, {"0": None}, {"type": "crypt"}, {"mandatory": "x"},
    {"mandatory": [1]}, {"0": {"segments": ["0"]}}, [[]] * 1000,
]  # fmt: skip


def paths(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of everything in a JSON document, beginning with the document itself."""
    yield way
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        yield from paths(member, (*way, name))


def mutants(good: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every document in which one part of ``good`` is missing, has an addition, or is replaced by one of the bad
    values."""
    for *way, last in (path for path in paths(good) if path):
        for value in ["missing", "twice", *BAD_VALUES]:
            mutant = copying.deepcopy(good)
            place: Any = mutant
            for name in way:
                place = place[name]
            if value == "missing":
                del place[last]
            elif value == "twice":
                if isinstance(place, list):
                    place.append(place[last])
                else:
                    place["9"] = place[last]
            else:
                place[last] = value
            yield f"{way} {last}: {value!r:.60}", mutant


MUTATED = {
    "two slots": document(),
    "requirements": changed("config requirements", {"mandatory": []}),
    "integrity": changed("segments 0 integrity", {"type": "none", "journal_encryption": "none"}),
    "no slot": document(keyslots={}, segments={"0": document()["segments"]["0"] | {"size": "1048576"}}),
}


@pytest.mark.parametrize("case", MUTATED)
def test_every_field_missing_or_bad_raises_format_errors_or_nothing(case: str) -> None:
    refused = accepted = 0
    for what, mutant in mutants(MUTATED[case]):
        try:
            header = parse(mutant)
            header.check_fits(32 * MIB)
        except FormatError as error:
            refused += 1
            assert len(str(error)) < 400, what
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
        else:
            accepted += 1
            check_sane(header)
    assert refused > 100 and accepted > (0 if case == "integrity" else 100)


def test_every_field_that_is_needed_is_needed() -> None:
    """Only those parts of the good JSON area are optional that the specification calls optional, or that we do not
    use."""
    unneeded = set()
    for path in paths(document()):
        if path:
            mutant = document()
            *way, last = path
            place: Any = mutant
            for name in way:
                place = place[name]
            del place[last]
            try:
                parse(mutant)
            except FormatError:
                continue
            unneeded.add(" ".join(map(str, path)))
    others = {path for path in unneeded if path.split()[0] == "tokens" or path.startswith(("keyslots 2", "keyslots 3"))}
    assert unneeded - others == {
        "keyslots 0",
        "keyslots 1",
        "keyslots 1 priority",
        "digests 0 keyslots 0",
        "digests 0 keyslots 1",
        "digests 0 keyslots 2",
        "digests 1",
        "digests 1 type",
        "digests 1 keyslots",
        "digests 1 keyslots 0",
        "digests 1 segments",
        "config json_size",
        "config keyslots_size",
    }


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["0", "crypt"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["0", "config", "segments", "digests", "keyslots", "type", "offset", "x"]),
                inner,
                max_size=5,
            )
        ),
    )
)
def test_any_json_raises_format_errors(value: Any) -> None:
    area = json.dumps(value).encode().replace(b"\0", b" ")
    with pytest.raises(FormatError):
        read(luks2(area, 0x8000))


AREA_SIZE = len(json.dumps(document()))


@pytest.mark.logs(r"^mystfuse\.image\.unlock")
@given(st.lists(st.tuples(st.integers(0, AREA_SIZE - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_bytes_changed_under_a_good_checksum_raise_format_errors_or_nothing(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(luks2_copy(document()))
    for position, value in changes:
        damaged[4096 + position] = value
    try:
        header = read(with_checksum(damaged))
        assert header is not None
        header.check_fits(32 * MIB)
    except FormatError:
        return
    check_sane(header)
