"""Who resolves names for a program under ``exec``: /etc/resolv.conf of the image, or the host's."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import mystfuse, run


@pytest.fixture
def host_resolver(tmp_path: Path) -> Iterator[Callable[[Path | None], list[str]]]:
    """Words that run a command with another /etc/resolv.conf on the host; None for none."""

    def words(resolver: Path | None) -> list[str]:
        shown = tmp_path / "empty"
        shown.touch()
        return [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f'mount --bind {resolver or shown} /etc/resolv.conf && exec "$@"',
            "sh",
        ]

    if os.geteuid() or not Path("/etc/resolv.conf").exists():
        pytest.skip("needs root, and a resolver to put another in the place of")
    yield words


@pytest.mark.parametrize(
    "there, expected",
    [(None, "the host's"), ("", "the host's"), ("own\n", "own"), ("-> ../run/stub", "the host's"),
     ("-> marker", "from the image")],
)  # fmt: skip
def test_names_are_resolved_as_on_the_host_where_the_image_does_not_say(
    host_resolver: Callable[[Path | None], list[str]], tmp_path: Path, there: str | None, expected: str
) -> None:
    root, host = tmp_path / "root", tmp_path / "host"
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc/marker").write_text("from the image\n")
    shutil.copy("/bin/busybox", root / "bin/cat")
    host.write_text("the host's\n")
    resolver = root / "etc/resolv.conf"
    if there is not None and there.startswith("-> "):
        resolver.symlink_to(there[3:])
    elif there is not None:
        resolver.write_text(there)
    assert mystfuse("mkext2", root, tmp_path / "image").returncode == 0

    def shown(*options: str, resolver: Path | None = host) -> str:
        command = [*host_resolver(resolver), sys.executable, "-m", "mystfuse", "exec", *options]
        result = run(*command, tmp_path / "image", "cat", "/etc/resolv.conf", check=False, timeout=60)
        return result.stdout.strip()

    assert shown() == expected
    if there is None:
        assert shown("--no-network") == shown(resolver=None) == ""
        (tmp_path / "given").write_text("given\n")
        assert shown("--mount", f"{tmp_path / 'given'}=/etc/resolv.conf") == "given"
    assert host.read_text() == "the host's\n"
