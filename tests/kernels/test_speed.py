"""``mystfuse speed`` and ``--version``: what is in use, and how fast both twins are."""

from __future__ import annotations

import json

from mystfuse import __version__, kernels
from tests.conftest import mystfuse


def test_figures_of_both_twins() -> None:
    result = mystfuse("speed", "--json")
    assert result.returncode == 0 and result.stderr == ""
    said = json.loads(result.stdout)
    assert said["kernel"] == kernels.name() and said["version"] == __version__ and said["processors"] >= 1
    figures = said["megabytes_per_second"]
    assert list(figures) == ["SHA-256, blocks of 4096", "AES-256-XTS, sectors of 512", "AES-256-XTS, sectors of 4096"]
    for row in figures.values():
        assert {"native", "native, all processors", "pure Python"} <= set(row)
        assert all(figure > 0 for figure in row.values())
    # Not by how much: the machine may be busy. But this is twenty times.
    decryption = figures["AES-256-XTS, sectors of 512"]
    assert decryption["native"] > 2 * decryption["pure Python"]


def test_the_text_is_a_table() -> None:
    lines = mystfuse("speed").stdout.splitlines()
    assert lines[0].startswith(f"kernel: {kernels.name()}; MB/s, ")
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "SHA-256, blocks of 4096",
        "AES-256-XTS, sectors of 512",
        "AES-256-XTS, sectors of 4096",
    ]
    assert len({len(line) for line in lines[1:]}) == 1


def test_the_version_names_the_kernel() -> None:
    assert mystfuse("--version").stdout == f"mystfuse, version {__version__}\nkernel: {kernels.name()}\n"
    pure = mystfuse("--version", env={kernels.PURE_PYTHON_VARIABLE: "1"})
    assert pure.stdout == f"mystfuse, version {__version__}\nkernel: pure Python\n"
