"""The examples of the commands' help: each works as it stands."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import pytest

from mystfuse.cli.examples import EXAMPLES
from mystfuse.cli.main import COMMANDS, cli
from mystfuse.remote.cache_directory import CacheDirectory
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.encrypted_images import PHRASE, write_secret
from tests.support.mounts import clear_mount
from tests.support.range_server import range_server
from tests.support.registry_server import registry_server
from tests.support.s3_server import s3_server

LINES = [(name, line) for name, lines in EXAMPLES.items() for line in lines]
IS_MOUNTED = frozenset({"umount", "status", "commit", "diff", "trace"})
"""Commands whose examples are about a mount that is there."""
_APART = (
    *("unshare", "--mount", "--map-root-user", "sh", "-c"),
    'for d in /usr/local/share /etc/fish; do [ ! -d $d ] || mount -t tmpfs tmpfs $d || exit; done; exec "$@"',
    "sh",
)
"""What runs a command that would install something for all users of this machine."""


def test_every_command_has_examples_and_few() -> None:
    assert {*COMMANDS, "mystfuse"} == EXAMPLES.keys()
    assert all(0 < len(lines) <= 3 for lines in EXAMPLES.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_help_shows_them(name: str) -> None:
    words = [] if name == "mystfuse" else [name]
    said = in_process(*words, "--help").stdout
    shown = said.partition("\nExamples:\n")[2].splitlines()[: len(EXAMPLES[name])]
    assert [line.strip() for line in shown] == list(EXAMPLES[name])
    assert in_process("help", *words).stdout == said


@pytest.mark.parametrize(("name", "line"), LINES, ids=[line for _, line in LINES])
def test_each_is_understood(name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options and arguments are those of the command itself, whatever the files are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.img").touch()
    words = shlex.split(line, comments=True)
    if words[0] != "mystfuse":
        assert line == "MYST_ROOTFS=app.img ./app", "a package, which is a command of its own"
        return
    words = words[1 : next((index for index, word in enumerate(words) if word in "|>"), None)]
    context = click.Context(cli, info_name="mystfuse", **cli.context_settings)
    cli.parse_args(context, words)
    found, command, arguments = cli.resolve_command(context, [*context._protected_args, *context.args])
    assert command is not None and found == {"mystfuse": found}.get(name, name)
    command.make_context(found, arguments, parent=context)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything that the examples name."""
    directory = tmp_path_factory.mktemp("examples")
    (directory / "tree/etc").mkdir(parents=True)
    (directory / "tree/bin").mkdir()
    (directory / "tree/etc/hosts").write_text("127.0.0.1 localhost\n")
    (directory / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n')
    run("gcc", "-static", "-o", directory / "tree/bin/hello", directory / "hello.c")
    run("tar", "-C", directory / "tree", "-czf", directory / "tree.tar.gz", ".")
    run("openssl", "genrsa", "-out", "private.pem", "-3", "3072", cwd=directory)
    run("openssl", "rsa", "-in", "private.pem", "-pubout", "-out", "public.pem", cwd=directory)
    write_secret(directory / "app.key", os.urandom(64))
    write_secret(directory / "passphrase", PHRASE)
    (directory / "config.json").write_text('{"version": "0.1", "ApplicationPath": "/bin/hello"}')
    CacheDirectory(str(directory / "cache")).close()
    made = (
        ("mkext2", "--sign", "public.pem:private.pem", "tree", "app.img"),
        ("mkext2", "--encrypt", "app.key", "tree", "secret.img"),
        ("package", "--pubkey", "public.pem", "-o", "app", "private.pem", "config.json"),
    )
    for words in made:
        result = mystfuse(*words, cwd=directory)
        assert result.returncode == 0, result.stderr
    (directory / "app.roothash").write_text(mystfuse("fssig", "--roothash", "app.img", cwd=directory).stdout)
    return directory


@contextmanager
def _servers(line: str, directory: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The servers that an example names: the line with their addresses, and variables for them."""
    with ExitStack() as stack:
        variables: dict[str, str] = {}
        if "registry.example" in line:
            registry = stack.enter_context(registry_server(directory / "registry"))
            line = line.replace("registry.example", registry.host)
        if "https://example.org" in line:
            line = line.replace("https://example.org", stack.enter_context(range_server(directory / "here")).url)
        if "s3://bucket/" in line:
            server = stack.enter_context(s3_server())
            server.client().create_bucket(Bucket="bucket")
            variables = server.environment
        yield line, variables


@pytest.mark.parametrize(("name", "line"), LINES, ids=[line for _, line in LINES])
def test_each_does_what_it_says(name: str, line: str, files: Path, tmp_path: Path) -> None:
    """Run by a shell, in a directory with the files that it names."""
    here = tmp_path / "here"
    run("cp", "-a", "--reflink=auto", files, here)
    (here / "mnt").mkdir()
    (here / "mystfuse").write_text(f'#!/bin/sh\nexec {sys.executable} -m mystfuse "$@"\n')
    (here / "mystfuse").chmod(0o755)
    if name == "package":
        (here / "app").unlink()
    try:
        if name in IS_MOUNTED or line.startswith(("mystfuse status", "mystfuse umount", "mystfuse oci mnt")):
            result = mystfuse("app.img", "mnt", cwd=here)
            assert result.returncode == 0, result.stderr
            (here / "mnt/written").write_text("written\n")
        if "--force" in line and name == "commit":
            (here / "new.img").touch()
        environment = {"PATH": f"{here}:{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": str(here)}
        with _servers(line, tmp_path) as (typed, variables):
            result = run(*_APART if "install" in line else (), "bash", "-o", "pipefail", "-c", typed, cwd=here,
                         env=environment | variables, check=False)  # fmt: skip
        # Its 1 says that there are differences.
        assert result.returncode in ((0, 1) if name == "diff" else (0,)), result.stderr
        if line.startswith("mystfuse umount"):
            assert "mnt: unmounted; " in result.stdout, result.stdout
    finally:
        clear_mount(here / "mnt")
