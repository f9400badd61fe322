"""Name servers of a program under ``exec``: /etc/resolv.conf of the image, or the host's."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mystfuse.container.resolv_conf import RESOLVER
from mystfuse.container.root_directory import Root
from tests.support.commands import mystfuse, run

HAD_RESOLVER = Path(RESOLVER).exists()


@pytest.fixture
def host_resolver(tmp_path: Path) -> Iterator[Callable[[Path | None], list[str]]]:
    """A command prefix that gives the host another /etc/resolv.conf; None for none."""

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


@pytest.mark.parametrize("there", [None, "-> ../run/stub"])
def test_names_are_resolved_as_on_the_host_where_the_image_does_not_say(
    host_resolver: Callable[[Path | None], list[str]], tmp_path: Path, there: str | None
) -> None:
    """Images of systems with systemd-resolved have a dangling link there."""
    root, host = tmp_path / "root", tmp_path / "host"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/cat")
    host.write_text("the host's\n")
    if there is not None:
        (root / "etc").mkdir()
        (root / "etc/resolv.conf").symlink_to(there[3:])
    assert mystfuse("mkext2", root, tmp_path / "image").returncode == 0

    def shown(*options: str, resolver: Path | None = host) -> str:
        command = [*host_resolver(resolver), sys.executable, "-m", "mystfuse", "exec", *options]
        result = run(*command, tmp_path / "image", "cat", "/etc/resolv.conf", check=False, timeout=60)
        return result.stdout.strip()

    assert shown() == "the host's"
    if there is None:
        assert shown("--no-network") == shown(resolver=None) == ""
        (tmp_path / "given").write_text("given\n")
        assert shown("--mount", f"{tmp_path / 'given'}=/etc/resolv.conf") == "given"
    assert host.read_text() == "the host's\n"


@pytest.mark.parametrize(
    "there, says_nothing",
    [(None, True), ("", True), ("nameserver 192.0.2.1\n", False), ("-> gone", True), ("-> /gone/too", True),
     ("-> empty", True), ("-> full", False), ("-> /etc/full", False), ("a directory", False)],
)  # fmt: skip
def test_an_image_names_its_name_servers(tmp_path: Path, there: str | None, says_nothing: bool) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "full").write_text("x\n")
    (etc / "empty").touch()
    path = etc / "resolv.conf"
    if there == "a directory":
        path.mkdir()
    elif there is not None and there.startswith("-> "):
        path.symlink_to(there[3:])
    elif there is not None:
        path.write_text(there)
    root = Root(str(tmp_path))
    before = sorted(os.listdir(etc))
    assert root.is_empty_or_absent(RESOLVER) == says_nothing
    if says_nothing:
        root.remove_link(RESOLVER)
        # exec makes a file there, in the image.
        assert root.make_file(RESOLVER).startswith(f"{etc}/")
        assert Path(RESOLVER).exists() == HAD_RESOLVER
    else:
        assert sorted(os.listdir(etc)) == before
