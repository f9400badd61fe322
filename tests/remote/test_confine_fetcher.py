"""What a confined fetcher can and cannot do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mystfuse.remote.confine_fetcher import ReplacedFiles
from mystfuse.remote.fetcher_config import FetcherConfig

PROBE = """
import json, os, subprocess, sys, trio
from mystfuse.remote.confine_fetcher import confine_fetcher
from mystfuse.remote.fetcher_config import FetcherConfig

given = json.loads(sys.argv[1])
version = confine_fetcher(FetcherConfig((given["address"],), given["cache"], ca_certificates=given["ca"]))

def can(action):
    try:
        action()
    except OSError:
        return False
    return True

def write(path):
    with open(path, "w") as file:
        file.write("x")

import httpx2, ssl
result = {path: can(lambda: open(path).close()) for path in given["read"]}
result |= {path: can(lambda: write(path)) for path in given["write"]}
result["execute"] = can(lambda: subprocess.run(["/bin/true"], check=True))
result["signal"] = can(lambda: os.kill(os.getppid(), 0))
result["capabilities"] = open("/proc/self/status").read().split("CapEff:")[1].split()[0]
result["landlock"] = version
print(json.dumps(result))
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    (home / ".docker").mkdir(parents=True)
    for name in (".netrc", "image.key", "ca.pem", ".docker/config.json", ".ssh-key"):
        (home / name).write_text("{}")
    (tmp_path / "cache").mkdir()
    yield home


def _probe(home: Path, address: str) -> dict[str, object]:
    cache = home.parent / "cache"
    given = {
        "address": address,
        "cache": str(cache),
        "ca": str(home / "ca.pem"),
        "read": [str(home / name) for name in (".netrc", "image.key", "ca.pem", ".docker/config.json")],
        "write": [str(cache / "file"), str(home / "file"), str(home / ".netrc.new"), "/dev/null"],
    }
    result = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(given)],
        env={**os.environ, "HOME": str(home)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answers: dict[str, object] = json.loads(result.stdout)
    if not answers["landlock"]:
        pytest.skip("the kernel has no Landlock")
    return {name.removeprefix(f"{home.parent}/"): answer for name, answer in answers.items()}


def test_it_reads_credentials_and_no_keys_of_images_and_writes_in_its_cache(home: Path) -> None:
    answers = _probe(home, "https://host/image")
    assert answers.pop("landlock")
    assert answers.pop("signal") is False
    assert answers == {
        "home/.netrc": True, "home/image.key": False, "home/ca.pem": True, "home/.docker/config.json": True,
        "cache/file": True, "home/file": False, "home/.netrc.new": False, "/dev/null": True,
        "execute": False, "capabilities": "0" * 16,
    }  # fmt: skip


def test_where_a_program_has_the_credentials_it_can_be_run_and_still_nothing_be_written(home: Path) -> None:
    assert _probe(home, "oci://host/image")["execute"] is False
    (home / ".docker/config.json").write_text('{"credsStore": "pass"}')
    answers = _probe(home, "oci://host/image")
    assert answers["execute"] is answers["home/image.key"] is answers["cache/file"] is True
    assert answers["home/file"] is False
    assert _probe(home, "https://host/image")["execute"] is False


def test_a_file_that_is_replaced_is_noticed(home: Path) -> None:
    config, environment = FetcherConfig(("https://host/image",)), {"HOME": str(home)}
    files = ReplacedFiles(config, environment)
    assert not files.are_there()
    (home / "new").write_text("machine host")
    (home / "new").rename(home / ".netrc")
    assert files.are_there()
    assert not ReplacedFiles(config, environment).are_there()
    (home / ".netrc").unlink()
    assert not ReplacedFiles(config, environment).are_there()
