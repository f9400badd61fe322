"""The original's own documentation (Mystikos, doc/using-ext2-in-mystikos.md), every command of it in turn, with
``myst`` read as ``mystfuse``.

Corrections that its text needs: the line ``myst mkext2 --encrypt=keyfile ext2image`` lacks the directory; ``myst
package`` does not say what config.json is; ``./myst/bin/hello`` lies in the current directory; its ``mount()`` has its
arguments the wrong way round (the image is the source) and is the Python API's here.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.commands import GROUP, USER, run

SCRIPT = r"""
set -eux
head -c 64 /dev/random > keyfile; chmod 600 keyfile
openssl genrsa -out private.pem -3 3072
openssl rsa -in private.pem -pubout -out public.pem

: Creating an EXT2 image
myst mkext2 appdir ext2image
myst fssig ext2image | tee fssig.txt
grep -x magic=f55198a153624d38 fssig.txt
grep -x version=1 fssig.txt
grep -x hash_offset=8388608 fssig.txt
grep -Ex 'root_hash=[0-9a-f]{64}' fssig.txt
grep -x signer=null fssig.txt
grep -x signature=null fssig.txt
grep -x signature_size=0 fssig.txt
myst fssig --roothash ext2image > roothash
test "root_hash=$(cat roothash)" = "$(grep root_hash fssig.txt)"
myst mkext2 --sign=public.pem:private.pem appdir signedimage
myst fssig signedimage | grep -Ex 'signature_size=384'
myst mkext2 --encrypt=keyfile appdir encryptedimage

: Using EXT2 as a root file system
test "$(myst exec-sgx ext2image /bin/hello)" = "Hello World!"
test "$(myst exec-linux ext2image /bin/hello)" = "Hello World!"
test "$(myst exec --key-file keyfile encryptedimage /bin/hello)" = "Hello World!"

: Packaging, with a trusted root hash and with a trusted public key
myst package --roothash=roothash private.pem config.json
test "$(MYST_ROOTFS=ext2image ./myst/bin/hello)" = "Hello World!"
test "$(MYST_ROOTFS_PATH=ext2image ./myst/bin/hello)" = "Hello World!"
test "$(./myst/bin/hello --rootfs=ext2image)" = "Hello World!"
status=0; ./myst/bin/hello --rootfs=signedimage || status=$?; test $status = 3
myst package-sgx --force --pubkey=public.pem private.pem config.json
test "$(./myst/bin/hello --rootfs=signedimage)" = "Hello World!"
status=0; ./myst/bin/hello --rootfs=ext2image || status=$?; test $status = 3

: Mounting EXT2 images from applications
mkdir mydisk
"$PYTHON" - <<END
import mystfuse
with mystfuse.mount("ext2image", "mydisk", roothashes=["roothash"]) as m:
    assert (m.mountpoint / "bin/hello").exists()
with mystfuse.mount("encryptedimage", "mydisk", trust="self", key=open("keyfile", "rb").read().hex()) as m:
    assert (m.mountpoint / "bin/hello").exists()
END
"""


@pytest.fixture
def directory(open_tmp_path: Path) -> Path:
    """A working directory with ``appdir``, which contains a program, and ``config.json``."""
    (open_tmp_path / "appdir/bin").mkdir(parents=True)
    source = open_tmp_path / "hello.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("Hello World!"); return 0; }\n')
    run("gcc", "-static", "-o", open_tmp_path / "appdir/bin/hello", source)
    (open_tmp_path / "config.json").write_text('{"version": "0.1", "ApplicationPath": "/bin/hello"}\n')
    return open_tmp_path


def run_script(directory: Path, command: list[str], python: list[str], prefix: tuple[str, ...] = ()) -> None:
    """Run the document's script, with ``command`` as ``myst`` and ``mystfuse``."""
    programs = directory / "programs"
    programs.mkdir()
    for name in "myst", "mystfuse":
        (programs / name).write_text(f'#!/bin/sh\nexec {" ".join(command)} "$@"\n')
        (programs / name).chmod(0o755)
    (programs / "python").write_text(f'#!/bin/sh\nexec {" ".join(python)} "$@"\n')
    (programs / "python").chmod(0o755)
    environment = [f"PATH={programs}:{os.environ['PATH']}:/usr/sbin:/sbin", f"PYTHON={programs / 'python'}"]
    run(*prefix, "env", *environment, "bash", "-c", SCRIPT, cwd=directory, timeout=300)


def test_every_command_works_as_root(directory: Path) -> None:
    package = Path(__file__).parents[2]
    python = ["env", f"PYTHONPATH={package}", sys.executable]
    run_script(directory, [*python, "-m", "mystfuse"], python)


def test_every_command_works_as_an_ordinary_user(directory: Path, ordinary_user: list[str]) -> None:
    for path in [directory, *directory.rglob("*")]:
        shutil.chown(path, USER, GROUP)
    command = ordinary_user[ordinary_user.index("env") :]
    run_script(directory, command, command[:-2], tuple(ordinary_user[: ordinary_user.index("env")]))
