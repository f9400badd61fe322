"""The kernel's cached pages of a file that is being written."""

from __future__ import annotations

import mmap
import os
import threading
import time
from pathlib import Path

from tests.support.mounts import mounted

SLOW_WRITES = """
import trio
from mystfuse.volume import volume

async def write(self, *words, real=volume.Volume.write, **options):
    self._runner.check_may_wait()
    await trio.sleep(0.3)
    return await real(self, *words, **options)
volume.Volume.write = write
"""


def test_attributes_that_come_while_a_write_waits_do_not_bring_old_pages_back(
    roomy_image: Path, tmp_path: Path, path_options: tuple[str, ...]
) -> None:
    """The first write has changed the modification time, and the kernel asks for it during the second."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_WRITES)
    options = ("--insecure", *path_options)
    with mounted(roomy_image, tmp_path / "mount", *options, env={"PYTHONPATH": str(tmp_path)}) as mountpoint:
        file = os.open(mountpoint / "file", os.O_RDWR)
        try:
            with mmap.mmap(file, 0, prot=mmap.PROT_READ) as view:
                assert view[:2] == b"\0\1"
                os.pwrite(file, b"1" * 4096, 0)
                second = threading.Thread(target=os.pwrite, args=(file, b"2" * 4096, 0))
                second.start()
                time.sleep(0.1)
                os.fstat(file)
                assert view[:1] in (b"1", b"2")
                assert second.is_alive()
                second.join()
                assert view[:1] == b"2"
        finally:
            os.close(file)
