"""``mystfuse cache``: what it says of a cache, and what it does to it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mystfuse.errors import ExitStatus
from mystfuse.remote.cache_directory import CacheDirectory
from mystfuse.remote.trace import Trace
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.json_documents import check_document
from tests.support.web_servers import free_ports, nginx

CONTENT = random.Random(7).randbytes((3 << 20) + 999)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("web")
    root.chmod(0o755)
    (root / "image").write_bytes(CONTENT)
    (port,) = free_ports(1)
    with nginx(
        tmp_path_factory.mktemp("server") / "nginx", f"server {{ listen 127.0.0.1:{port}; root {root}; }}", [port]
    ):
        yield f"http://127.0.0.1:{port}/image"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@contextmanager
def _in_use(cache: Path, key: str) -> Iterator[None]:
    directory = CacheDirectory(str(cache))
    files = directory.open_image(key)
    yield
    files.close()
    directory.close()


def test_an_image_is_fetched_once_shown_and_cleared(url: str, cache: Path) -> None:
    result = in_process("cache", "prefetch", "--json", "--cache", cache, url)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    check_document("cache-prefetch", document)
    assert document["size"] == len(CONTENT) and not document["missing"]
    assert len(CONTENT) <= document["fetched"] <= document["wanted"] + 32768
    again = json.loads(in_process("cache", "prefetch", "--json", "--cache", cache, url).stdout)
    # The last bytes say what image it is.
    assert again["fetched"] <= 128 << 10
    (data,) = cache.glob("*/data")
    assert data.read_bytes() == CONTENT

    document = json.loads(in_process("cache", "status", "--json", "--cache", cache).stdout)
    check_document("cache-status", document)
    assert [image["name"] for image in document["images"]] == [url]
    said = in_process("cache", "status", "--cache", cache).stdout
    assert url in said and said.endswith("1 image, 3 MiB\n")

    result = in_process("cache", "clear", "--json", "--cache", cache, url)
    check_document("cache-clear", json.loads(result.stdout))
    assert not list(cache.glob("*/data"))
    assert in_process("cache", "status", "--cache", cache).stdout == "0 images, 0 bytes\n"


def test_what_a_trace_names_is_fetched(url: str, cache: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_bytes(Trace(len(CONTENT), bytes(32), ((1 << 20, 100_000), (2 << 20, 5))).pack())
    result = in_process("cache", "prefetch", "--json", "--cache", cache, "--trace", trace, url)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["wanted"] == 8 * 16384 and not document["missing"]
    (data,) = cache.glob("*/data")
    assert data.read_bytes()[1 << 20 :][:100_000] == CONTENT[1 << 20 :][:100_000]
    trace.write_bytes(Trace(len(CONTENT) + 1, bytes(32), ((1 << 20, 100_000),)).pack())
    result = in_process("cache", "prefetch", "--cache", cache, "--trace", trace, url)
    assert result.returncode == ExitStatus.USAGE and "trace of an image of" in result.stderr


def test_a_cache_that_is_too_small_is_told(url: str, cache: Path) -> None:
    result = mystfuse("cache", "prefetch", "--cache", cache, "--cache-size", "1M", url)
    assert result.returncode == ExitStatus.FAILED
    assert "--cache-size" in result.stderr.splitlines()[-1]


def test_an_image_in_use_is_emptied(url: str, cache: Path) -> None:
    in_process("cache", "prefetch", "--cache", cache, url)
    (entry,) = (path.parent for path in cache.glob("*/data"))
    with _in_use(cache, entry.name):
        result = in_process("cache", "clear", "--cache", cache, entry.name[:12])
        assert "1 of them in use, and emptied" in result.stdout, result
    assert not any((entry / "data").read_bytes())


def test_users_share_a_directory_of_all(
    url: str, open_tmp_path: Path, ordinary_user: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NETRC")
    for turn, users in enumerate(([], ordinary_user), 1):
        shared = open_tmp_path / f"cache-{turn}"
        shared.mkdir()
        shared.chmod(0o1777)
        others = [] if users else ordinary_user
        for user, least, most in ((users, len(CONTENT), 2 * len(CONTENT)), (others, 0, 128 << 10)):
            command = [*user, "cache", "prefetch", "--json", "--cache", shared, url]
            result = run(*command) if user else mystfuse(*command)
            assert least <= json.loads(result.stdout)["fetched"] <= most, result.stderr
        cleared = run(*ordinary_user, "cache", "clear", "--cache", shared)
        assert "1 image cleared" in cleared.stdout
        assert not list(shared.glob("*/data"))


@pytest.mark.parametrize(
    "words, status, said",
    [
        (("status", "--cache", "missing"), ExitStatus.FAILED, "missing: No such file"),
        (("status",), ExitStatus.USAGE, "--cache"),
        (("status", "--cache", "."), ExitStatus.FAILED, "not a cache of mystfuse"),
        (("clear", "--cache", "cache", "http://host/other"), ExitStatus.FAILED, "has no image"),
        (("prefetch", "http://host/image"), ExitStatus.USAGE, "--cache"),
        (("prefetch", "--cache", "cache", "image"), ExitStatus.USAGE, "not an address"),
        (
            ("prefetch", "--cache", "cache", "--prefetch", "all", "http://h/i"),
            ExitStatus.USAGE,
            "no such option --prefetch",
        ),
        (("prefetch", "--cache", "cache", "--trace", "missing", "http://h/i"), ExitStatus.FAILED, "missing: No such"),
    ],
)
def test_mistakes_are_told(
    words: tuple[str, ...], status: ExitStatus, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CacheDirectory(str(tmp_path / "cache")).close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MYSTFUSE_CACHE", raising=False)
    result = in_process("cache", *words)
    assert (result.returncode, result.stdout) == (status, "") and said in result.stderr
    assert len(result.stderr.splitlines()) == 1
