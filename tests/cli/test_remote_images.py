"""Every command takes the address of an image where it takes a path, and says the same of it; or refuses it by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import assert_one_line, mystfuse
from tests.support.images import DATA
from tests.support.mounts import wait_until
from tests.support.range_server import RangeServer, range_server

KEY = ("--pubkey", os.fspath(DATA / "public.pem"))
ADDRESS = "https://user:secret@localhost:1/app.img?signature=secret"


@pytest.fixture(scope="module")
def server(golden: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RangeServer]:
    directory = tmp_path_factory.mktemp("www")
    shutil.copy(golden["signed-4096"], directory / "app.img")
    shutil.copy(golden["plain-4096"], directory / "plain.img")
    content = (directory / "app.img").read_bytes()
    (directory / "bare.img").write_bytes(content[: 6 << 20])
    (directory / "text").write_text("no image at all\n" * 1000)
    with range_server(directory) as server:
        yield server


@pytest.fixture
def image(server: RangeServer) -> str:
    return f"{server.url}/app.img"


@pytest.fixture
def path(server: RangeServer) -> str:
    return os.fspath(server.directory / "app.img")


SAME = {
    "ls": ("ls", "-l", *KEY, "IMAGE", "/"),
    "cat": ("cat", *KEY, "IMAGE", "/hello.txt"),
    "info": ("info", *KEY, "IMAGE"),
    "info --json": ("info", "--json", *KEY, "IMAGE"),
    "fssig": ("fssig", "IMAGE"),
    "verify": ("verify", *KEY, "IMAGE"),
    "verify --files": ("verify", "--files", "--json", *KEY, "IMAGE"),
    "ls --json": ("ls", "--json", *KEY, "IMAGE", "/many"),
    "no such path": ("cat", *KEY, "IMAGE", "/none"),
    "not trusted": ("ls", "--roothash", "00" * 32, "IMAGE", "/"),
    "unsigned": ("ls", *KEY, "PLAIN", "/"),
    "bare": ("ls", "BARE", "/"),
    "bare, insecure": ("ls", "--insecure", "BARE", "/"),
    "no image": ("info", "TEXT"),
    "missing key": ("ls", "--key-file", os.fspath(DATA / "keyfile"), *KEY, "IMAGE", "/"),
}


@pytest.mark.parametrize("name", SAME)
def test_a_command_says_the_same_of_both(name: str, server: RangeServer) -> None:
    def answer(place: str) -> tuple[int, str, str]:
        words = {"IMAGE": "app.img", "PLAIN": "plain.img", "BARE": "bare.img", "TEXT": "text"}
        said = mystfuse(*(f"{place}/{words[word]}" if word in words else word for word in SAME[name]))
        return said.returncode, said.stdout.replace(place, "PLACE"), said.stderr.replace(place, "PLACE")

    assert answer(server.url) == answer(os.fspath(server.directory))


def test_tar_and_extract_copy_the_same(image: str, path: str, tmp_path: Path) -> None:
    archives = [
        subprocess.run([sys.executable, "-m", "mystfuse", "tar", *KEY, of], capture_output=True, check=True).stdout
        for of in (image, path)
    ]
    assert archives[0] == archives[1] and len(archives[0]) > 1_000_000
    assert mystfuse("extract", *KEY, image, "/large.bin", tmp_path / "copy").returncode == 0
    assert (tmp_path / "copy").read_bytes() == subprocess.run(
        [sys.executable, "-m", "mystfuse", "cat", *KEY, path, "/large.bin"], capture_output=True, check=True
    ).stdout


def test_diff_compares_it_with_a_copy_and_with_another(image: str, path: str, server: RangeServer) -> None:
    assert mystfuse("diff", *KEY, image, path).returncode == 0
    assert mystfuse("diff", *KEY, image, image).returncode == 0
    both = mystfuse("diff", "--mirror", image, *KEY, image, image)
    assert_one_line(both, 2, "--mirror: of one image")


def test_oci_of_it(image: str, path: str, tmp_path: Path) -> None:
    made = [
        json.loads(mystfuse("oci", "--json", *KEY, of, f"oci:{tmp_path}/{number}").stdout)["manifest"]["digest"]
        for number, of in enumerate((image, path))
    ]
    assert made[0] == made[1]


def test_urls_of_files_are_paths(path: str) -> None:
    for url in (f"file://{path}", f"file:{path}", f"FILE://localhost{path}", f"file://{path.replace('app', '%61pp')}"):
        assert (
            mystfuse("cat", *KEY, url, "/hello.txt").stdout == "Hello World!\n"
            or "Hello" in mystfuse("cat", *KEY, url, "/hello.txt").stdout
        ), url
    assert_one_line(mystfuse("ls", f"file://elsewhere{path}", "/"), 2, "the file of another machine")


REFUSED = {
    "sign": ("sign", "--remove", ADDRESS),
    "mkext2": ("mkext2", "/tmp", ADDRESS),
    "commit": ("commit", "/tmp", ADDRESS),
    "exec --commit": ("exec", "--commit", ADDRESS, "/dev/null", "true"),
    "--mirror of a file": ("ls", "--mirror", ADDRESS, "/dev/null", "/"),
    "a wrong address": ("ls", "https:///app.img", "/"),
    "a wrong mirror": ("ls", "--mirror", "/srv/app.img", ADDRESS, "/"),
    "no certificates": ("ls", "--ca-certificates", "/none", ADDRESS, "/"),
    "no trace": ("ls", "--prefetch", "/dev/null", ADDRESS, "/"),
}


@pytest.mark.parametrize(
    "address", ["s3://b/key", "s3://bucket/key?sig=1", "oci://host/Upper/app:v1", "oci://u:p@host/app"]
)
def test_an_address_that_cannot_be_one_is_wrong_usage(address: str) -> None:
    assert_one_line(mystfuse("ls", address, "/"), 2)
    assert_one_line(mystfuse("ls", "--mirror", address, "http://127.0.0.1:1/app.img", "/"), 2)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_line_without_secrets(name: str) -> None:
    result = mystfuse(*REFUSED[name])
    assert_one_line(result, result.returncode)
    assert result.returncode in (1, 2, 6) and "secret" not in result.stderr and "Traceback" not in result.stderr


def test_an_image_that_is_not_there_is_one_line(server: RangeServer) -> None:
    assert_one_line(mystfuse("ls", f"{server.url}/none.img", "/"), 1, f"{server.url}/none.img", "404")


def test_nobody_listens_and_it_takes_no_longer_than_was_given() -> None:
    result = mystfuse("ls", "--io-timeout", "2", "http://user:secret@127.0.0.1:1/app.img?token=secret", "/", timeout=60)
    assert_one_line(result, 1, "http://127.0.0.1:1/app.img?...")
    assert "secret" not in result.stderr


def test_who_waits_for_a_server_is_told_why(tmp_path: Path) -> None:
    for words in (("ls",), ("fssig",), ("mount", os.fspath(tmp_path)), ("mount", "--foreground", os.fspath(tmp_path))):
        command, *mountpoint = words
        result = mystfuse(command, "--io-timeout", "4", "http://u:secret@127.0.0.1:1/app.img", *mountpoint, timeout=60)
        assert result.returncode == 1
        warning, error = result.stderr.splitlines()
        assert warning.startswith("mystfuse: warning: fetcher: http://127.0.0.1:1/app.img: connection refused"), words
        assert "; trying again for up to " in warning
        # The second: where a busy machine starts the fetcher late.
        assert re.match(r"mystfuse: http://127.0.0.1:1/app.img: (connection refused .*; tried |no answer )", error), (
            error
        )


def test_a_cache_that_cannot_be_used_is_told(image: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = mystfuse("ls", *KEY, "--cache", os.fspath(tmp_path / "file"), image, "/")
    assert_one_line(
        result, 0, f"warning: fetcher: cache {tmp_path}/file: Not a directory; it goes on with a cache in memory"
    )


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "httpx2.py").write_text("raise ImportError\n")
    hide = (
        "import importlib.util as util, sys; find = util.find_spec; "
        "util.find_spec = lambda name, *more: None if name == 'httpx2' else find(name, *more); "
        "from mystfuse.cli.start import mystfuse; mystfuse()"
    )
    for words in (("ls", ADDRESS, "/"), ("mount", ADDRESS, os.fspath(tmp_path)), ("exec", ADDRESS, "true")):
        result = subprocess.run([sys.executable, "-c", hide, *words], capture_output=True, text=True, timeout=60)
        assert_one_line(result, 1, "pip install 'mystfuse[remote]'", "https://localhost:1/app.img?...")


def test_an_address_completes_to_nothing_at_once(image: str, server: RangeServer) -> None:
    before = len(server.ranges)
    for words in (["ls", image[:-3]], ["ls", image, "/"], ["exec", image, "/b"], [image[:-2]]):
        result = mystfuse(*words, env={"_MYSTFUSE_COMPLETE": "zsh_complete"})
        assert (result.stdout, result.stderr) == ("", ""), words
    assert len(server.ranges) == before


def test_no_fetcher_is_left(image: str, server: RangeServer) -> None:
    mystfuse("cat", *KEY, image, "/hello.txt")

    def fetchers() -> list[str]:
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"mystfuse.remote.fetcher" in command and f"MARK={server.url}".encode() in environment:
                found.append(pid)
        return found

    mystfuse("cat", *KEY, image, "/hello.txt", env={"MARK": server.url})
    wait_until(lambda: not fetchers(), 30)


def test_the_fetcher_gets_no_descriptor_and_no_variable_that_may_lead_to_keys(image: str) -> None:
    """A key in a pipe is the command's alone, though the fetcher is started before it is read."""
    receiver, sender = os.pipe()
    os.write(sender, b"ab" * 64)
    probe = f"""
import contextlib, os
from mystfuse.remote.address import parse_address
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.start_fetcher import _started, start_fetcher
client = start_fetcher(parse_address({image!r}), FetcherConfig(({image!r},)))
(pid,) = _started
print(open(f"/proc/{{pid}}/environ").read())
for number in os.listdir(f"/proc/{{pid}}/fd"):
    with contextlib.suppress(OSError):
        print(os.readlink(f"/proc/{{pid}}/fd/{{number}}"))
"""
    try:
        said = subprocess.run(
            [sys.executable, "-c", probe], pass_fds=[receiver], capture_output=True, text=True, check=True,
            env={**os.environ, "CREDENTIALS_DIRECTORY": "/run/credentials/x", "NOTIFY_SOCKET": "/run/x"},
        ).stdout  # fmt: skip
        pipe = os.readlink(f"/proc/self/fd/{receiver}")
    finally:
        os.close(receiver)
        os.close(sender)
    assert pipe not in said and "CREDENTIALS" not in said and "NOTIFY_SOCKET" not in said
