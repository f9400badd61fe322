"""One place for the arguments: what ``help`` shows, what type checkers know, and what the command line has as well."""

from __future__ import annotations

import inspect
import json
import math
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import mystfuse
from mystfuse.api.arguments import MOUNT_DEFAULTS, OPEN_DEFAULTS, MountArguments, OpenArguments
from mystfuse.api.fsspec_filesystem import MystfuseFileSystem
from mystfuse.cli.commands.mount import command as mount_command
from mystfuse.cli.commands.verify import command as verify_command
from mystfuse.crypto.kdf_limit import KdfLimit
from tests.support.cancelled_mounts import Machine
from tests.support.commands import run
from tests.support.images import PROJECT

TAKERS = {
    "open_image": mystfuse.open_image,
    "Image": mystfuse.Image,
    "mount": mystfuse.mount,
    "fsspec": MystfuseFileSystem,
}


def test_each_argument_has_a_type_a_default_and_a_description() -> None:
    for defaults, kinds in ((OPEN_DEFAULTS, [OpenArguments]), (MOUNT_DEFAULTS, [OpenArguments, MountArguments])):
        described = [
            line.partition(":")[0]
            for kind in kinds
            for line in inspect.cleandoc(kind.__doc__ or "").splitlines()
            if not line.startswith(" ")
        ]
        assert described == list(defaults) == list(kinds[-1].__annotations__)


@pytest.mark.parametrize("name", TAKERS)
def test_help_shows_each_argument(name: str) -> None:
    taker = TAKERS[name]
    defaults: dict[str, Any] = {**(MOUNT_DEFAULTS if name == "mount" else OPEN_DEFAULTS)}
    parameters = inspect.signature(taker).parameters
    for argument, default in defaults.items():
        assert parameters[argument].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[argument].default == default
        assert parameters[argument].annotation != inspect.Parameter.empty
        assert f"        {argument}: " in (taker.__doc__ or "")
    assert "{arguments}" not in (taker.__doc__ or "") and next(iter(parameters)) == "image"
    with pytest.raises(TypeError, match="pubkey"):
        taker("image", "mountpoint", pubkey="x") if name == "mount" else taker("image", pubkey="x")  # type: ignore[operator]


def test_help_shows_the_methods_of_an_image_under_their_names() -> None:
    text = pydoc.plain(pydoc.render_doc(mystfuse.Image))
    for line in ("stat(self, path: 'str | bytes', *, follow_symlinks: 'bool' = True) -> 'Stat'",
                 "read_bytes(self, path: 'str | bytes') -> 'bytes'",
                 "The result of stat(2) for ``path``."):  # fmt: skip
        assert line in text
    assert not re.search(r"^ \|  \w+ = \w+\(", text, re.MULTILINE)


@pytest.mark.parametrize("command", [mount_command, verify_command], ids=["mount", "verify"])
def test_the_command_line_has_the_same_under_the_same_names(command: click.Command) -> None:
    """But for trust in itself, which it has by default, and keys, which it takes from files."""
    given = command.make_context("command", ["image", "mountpoint"][: 1 + (command is mount_command)]).params
    others = {"trust": "trust_self", "key": "key_file", "passphrase": "passphrase_file", "options": "mount_options"}
    for argument, default in (MOUNT_DEFAULTS if command is mount_command else OPEN_DEFAULTS).items():
        assert given[others.get(argument, argument)] == default, argument


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
def test_times_are_more_than_nothing(seconds: float) -> None:
    """On the command line 0 is no limit."""
    for given in ({"io_timeout": seconds}, {"kdf_limit": (seconds, 1 << 30)}):
        for taker in (mystfuse.Image, lambda image, **arguments: mystfuse.mount(image, "/m", **arguments)):
            with pytest.raises(mystfuse.UsageError, match="more than 0"):
                taker("image", **given)


def test_mounting_passes_everything_on(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[list[str]] = []

    def record(self: object, arguments: list[str], descriptors: object = ()) -> str:
        said.append([str(argument) for argument in arguments])
        raise mystfuse.MountError("as ordered")

    monkeypatch.setattr("tests.support.cancelled_mounts.Command.run", record)
    with pytest.raises(mystfuse.MountError):
        mystfuse.mount(
            "image", "/m", roothashes=["ab" * 32], insecure=True, hash_offset=4096, kdf_limit=(math.inf, 1 << 20),
            io_timeout=2.5, read_only=True, overlay_limit=1 << 20, overlay_store="/s", options=["nodev", "uid=5"],
        ).__enter__()  # fmt: skip
    assert said[0] == [
        "mount", "-o", "no_trust_self", f"--roothash={'ab' * 32}", "--insecure", "--hash-offset=4096",
        "--kdf-limit=0:1048576", "--io-timeout=2.5", "--read-only", "--overlay-limit=1048576", "--overlay-store=/s",
        "-o", "nodev", "-o", "uid=5", "--", "image", "/m",
    ]  # fmt: skip
    # What the command line makes of it.
    with mount_command.make_context("mount", [*said[0][1:-2], "image", "/m"]) as context:
        assert context.params["kdf_limit"] == KdfLimit(math.inf, 1 << 20)
        assert context.params["io_timeout"] == 2.5
    for given, seconds in (((1e-9, 5), "0.000000001:5"), ((60, 1 << 30), "60.000000000:1073741824")):
        with pytest.raises(mystfuse.MountError):
            mystfuse.mount("image", "/m", kdf_limit=given).__enter__()
        assert f"--kdf-limit={seconds}" in said[-1]


def test_type_checkers_know_the_arguments(tmp_path: Path) -> None:
    good = tmp_path / "good.py"
    good.write_text(
        """
from importlib.resources.abc import Traversable
import mystfuse

async def main() -> bytes:
    async with mystfuse.open_image(image="x", pubkeys=["a.pem"], trust="self", io_timeout=1) as image:
        async for entry in image.scandir("/"):
            name: str = entry.name
        async for top, directories, others in image.walk(b"/"):
            names: list[bytes] = others
        size: int = (await image.stat("/")).st_size
        return await image.read_file("/x")

with mystfuse.Image("x", roothashes=[b"x" * 32], kdf_limit=(1.0, 5)) as image:
    data: bytes = image.read_bytes("/etc/hosts")
    listed: list[bytes] = image.listdir(b"/")
    lost: dict[str, int] = image.extract("/etc", "etc")
    path = image / "etc" / "hosts"
    text: str = path.read_text()
    resource: Traversable = path
with mystfuse.mount("x", mountpoint="m", read_only=True, options=["nodev"]) as mounted:
    where = mounted.mountpoint
"""
    )
    bad = tmp_path / "bad.py"
    wrong = [
        'mystfuse.open_image("x", pubkey=["a.pem"])',
        'mystfuse.open_image("x", trust="anybody")',
        'mystfuse.Image("x", io_timeout="1")',
        'mystfuse.Image("x", read_only=True)',
        'mystfuse.mount("x", "m", overlay_limit="1G")',
        "mystfuse.Image()",
        'mystfuse.Image("x").read_bytes(5)',
        'len(mystfuse.Image("x").stat("/"))',
    ]
    bad.write_text("\n".join(["import mystfuse", *wrong, ""]))
    result = run(
        sys.executable, "-m", "mypy", "--strict", "--output=json", "--follow-imports=silent",
        "--cache-dir", tmp_path / "cache", good, bad, check=False, cwd=PROJECT, timeout=300,
    )  # fmt: skip
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert {error["line"] for error in found if error["file"].endswith("bad.py")} == set(range(2, len(wrong) + 2))
    assert [error for error in found if error["file"].endswith("good.py")] == []


HEAVY = ("asyncio", "cffi", "click", "cryptography", "fsspec", "inspect", "json", "pathlib", "rich", "socket", "trio")


def test_importing_mystfuse_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import mystfuse; new = set(sys.modules) - before;"
        "assert mystfuse.__version__ and {'Image', 'open_image', 'mount'} <= set(dir(mystfuse));"
        "print(' '.join(new))"
    )
    # -S: what .pth files import is there before.
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=PROJECT
    )
    new = set(result.stdout.split())
    assert not new & set(HEAVY), new
    assert {name for name in new if name.startswith("mystfuse")} == {"mystfuse"}


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        ("NotTrusted", "trio asyncio click cryptography fsspec"),
        ("mount", "trio asyncio click cryptography fsspec pyfuse3"),
        ("Image", "asyncio click cryptography fsspec pyfuse3 rich"),
        ("open_image", "asyncio click cryptography fsspec pyfuse3 rich"),
    ],
)
def test_each_name_imports_only_what_it_needs(name: str, unwanted: str) -> None:
    code = f"import sys, mystfuse; mystfuse.{name}; print(' '.join(sys.modules))"
    loaded = run(sys.executable, "-c", code).stdout.split()
    assert not set(loaded) & set(unwanted.split()), set(loaded) & set(unwanted.split())
