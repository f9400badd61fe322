"""Files as sources: exact ranges or an error, even if the file is cut, deleted or damaged meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mystfuse.devices.device import Extent
from mystfuse.devices.source import FileSource
from mystfuse.errors import FormatError, ImageReadError
from tests.support.memory_source import CONTENT, read_all, running


def test_file_gives_exact_ranges_cold_and_cached(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    source = FileSource(image)
    assert source.size == 1 << 20
    assert source.name == str(image)
    assert source.read(12345, 67890) == CONTENT[12345:80235]
    cached = bytearray(67890)
    assert not source.read_cached(12345, memoryview(cached)) or cached == CONTENT[12345:80235]
    source.close()
    source.close()


def test_directory_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a directory, not an image"):
        FileSource(tmp_path)


def test_fifo_without_a_writer_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    started = time.monotonic()
    with pytest.raises(FormatError, match="a FIFO, not an image"):
        FileSource(tmp_path / "fifo")
    assert time.monotonic() - started < 1


def test_character_device_is_not_an_image() -> None:
    with pytest.raises(FormatError, match="a character device, not an image"):
        FileSource("/dev/zero")


@pytest.mark.parametrize(
    ("path", "reason"),
    [("absent", "No such file or directory"), ("file/below", "Not a directory"), ("n" * 300, "File name too long")],
)
def test_a_file_that_fails_to_open_is_named_with_the_reason(path: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageReadError, match=f"{path}: {reason}"):
        FileSource(tmp_path / path)


def test_refused_files_leave_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(FormatError):
            FileSource(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_file_truncated_after_it_was_opened_is_an_error_that_says_where_it_ends(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    source = FileSource(image)
    os.truncate(image, 5000)
    assert not source.read_cached(4096, memoryview(bytearray(4096)))
    with pytest.raises(ImageReadError, match="truncated: it ends at byte 5000, before byte 8192"):
        source.read(4096, 4096)
    assert source.read(0, 5000) == CONTENT[:5000]
    source.close()


@pytest.mark.logs(r"^mystfuse\.devices\.reader")
async def test_file_truncated_under_the_reader_fails_only_what_is_gone(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    async with running(FileSource(image)) as reader:
        os.truncate(image, 8192)
        results = await read_all(reader, [Extent(0, 4096), Extent(4096, 4096), Extent(8192, 4096)])
    assert results[:2] == [CONTENT[:4096], CONTENT[4096:8192]]
    assert isinstance(results[2], ImageReadError)


def test_file_deleted_after_it_was_opened_is_read_on(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    source = FileSource(image)
    image.unlink()
    assert source.read(100, 1000) == CONTENT[100:1100]
    source.close()


def test_error_of_the_operating_system_is_an_image_read_error(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    source = FileSource(image)
    source.close()
    assert not source.read_cached(0, memoryview(bytearray(10)))
    with pytest.raises(ImageReadError, match="Bad file descriptor"):
        source.read(0, 10)


def test_resolved_name_is_the_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").touch()
    (tmp_path / "link").symlink_to("image")
    monkeypatch.chdir(tmp_path)
    source = FileSource("link")
    assert source.resolved_name() == str(tmp_path / "image")
    source.close()
