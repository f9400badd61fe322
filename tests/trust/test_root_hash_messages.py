"""What ``--roothash`` does not take: the message says why, and whether a digest or the name of a file was meant."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mystfuse.errors import UsageError
from mystfuse.trust.sources import parse_root_hash

DIGEST = "0123456789abcdef" * 4
WANTED = "the 64 hex digits of a root hash (128 for sha512)"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "--roothash is empty (a variable that is not set?)"),
        (" \n", "--roothash is empty (a variable that is not set?)"),
        (DIGEST[:40], f"--roothash {DIGEST[:40]}: 40 hex digits, not {WANTED}"),
        (DIGEST[:16], f"--roothash {DIGEST[:16]}: 16 hex digits, not {WANTED}"),
        (f"0x{DIGEST}", f"--roothash 0x{DIGEST}: leave out 0x in front: it takes {WANTED} alone"),
        (f"0X{DIGEST}", f"--roothash 0X{DIGEST}: leave out 0X in front: it takes {WANTED} alone"),
        (f"sha256:{DIGEST}", f"--roothash sha256:{DIGEST}: leave out sha256: in front: it takes {WANTED} alone"),
        (f"sha256:{DIGEST[1:]}", f"--roothash sha256:{DIGEST[1:]}: not {WANTED}"),
        (f"sha256:md5:{DIGEST}", f"--roothash sha256:md5:{DIGEST}: not {WANTED}"),
        # One digit in more than ten may be a typing mistake.
        (f"{DIGEST[:10]}x", None),
        (f"{DIGEST[:20]}xy", f"--roothash {DIGEST[:20]}xy: not {WANTED}"),
        (f"{DIGEST[:18]}xy", None),
        (DIGEST[:15], None),
        (f"./{DIGEST}", None),
        ("public.roothash", None),
    ],
)
def test_what_is_wrong_with_a_root_hash_is_said(
    value: str, message: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = re.escape(message) if message is not None else f".*{re.escape(value)}: No such file or directory.*"
    with pytest.raises(UsageError, match=f"^{wanted}$"):
        parse_root_hash(value)


def test_a_file_with_the_name_of_a_digest_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    name = DIGEST[:40]
    (tmp_path / name).write_text(f"sha256:{DIGEST}\n")
    wanted = f"--pin {name}: what is in it: leave out sha256: in front: it takes {WANTED} alone"
    with pytest.raises(UsageError, match=f"^{re.escape(wanted)}$"):
        parse_root_hash(name, "--pin")
    (tmp_path / name).write_text(f"{DIGEST}\n")
    assert parse_root_hash(name).hex() == DIGEST
