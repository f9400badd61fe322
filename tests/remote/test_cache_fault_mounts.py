"""A real mount while its cache is damaged: programs read the right bytes, whatever happens to the directory."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cache_faults import CacheFaults
from tests.support.commands import mystfuse
from tests.support.mounts import mounted
from tests.support.web_servers import free_ports, nginx

FILE = random.Random(12).randbytes(6 << 20)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("web")
    root.chmod(0o755)
    (root / "tree").mkdir()
    (root / "tree/file").write_bytes(FILE)
    assert mystfuse("mkext2", root / "tree", root / "image").returncode == 0
    (port,) = free_ports(1)
    server = f"server {{ listen 127.0.0.1:{port}; root {root}; }}"
    with nginx(tmp_path_factory.mktemp("server") / "nginx", server, [port]):
        yield f"http://127.0.0.1:{port}/image"


@pytest.mark.parametrize("seed", range(3))
def test_programs_read_the_right_bytes_whatever_happens_to_the_cache(
    url: str, tmp_path: Path, mountpoint: Path, seed: int
) -> None:
    chance, cache = random.Random(seed), tmp_path / "cache"
    (tmp_path / "precious").write_bytes(b"precious")
    faults = CacheFaults(chance, cache, list)
    faults.kinds = [
        faults.flip, faults.garbage, faults.lie, faults.forget, faults.future, faults.cut_data, faults.cut_map,
        faults.grow, faults.punch_holes, faults.swap, faults.lock, faults.unlock,
    ]  # fmt: skip
    if seed == 2:
        faults.kinds += [faults.remove_file, faults.replace_by_link]
    with mounted(url, mountpoint, "--cache", cache, "-o", "trust_self"), (mountpoint / "file").open("rb") as file:
        for turn in range(25):
            # The kernel forgets what it has of the file.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            offset = 0 if turn % 8 == 7 else chance.randrange(len(FILE))
            length = len(FILE) if turn % 8 == 7 else chance.choice((1, 4096, 200_000))
            file.seek(offset)
            assert file.read(length) == FILE[offset : offset + length]
            faults.do()
    faults.close()
    assert (tmp_path / "precious").read_bytes() == b"precious"
