"""Which keys may sign a package, and which images it may load."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.packages import FAILED, NOT_TRUSTED, USAGE, Keys, execute, output


def test_pinned_signers(
    package: Callable[..., Path], keys: Keys, image_keys: Keys, image: Path, path_with_mystfuse: str
) -> None:
    path = package(ApplicationParameters=["hello"])
    result = in_process("run", path, "--rootfs", "/absent.img", "--signer", image_keys[0])
    assert (result.returncode, result.stdout) == (NOT_TRUSTED, "")
    assert "is not among those who may sign packages" in result.stderr
    result = mystfuse("run", "--signer", image_keys[0], "--signer", keys[0], path, f"--rootfs={image}")
    assert (result.returncode, result.stdout, result.stderr) == (0, "hello\n", "")
    result = mystfuse("run", path, "--rootfs", image)
    assert (result.returncode, result.stdout) == (0, "hello\n")
    assert result.stderr.count("\n") == 1
    assert f"warning: {path} is vouched for by nobody but itself" in result.stderr
    result = in_process("run", "--no-trust-self", path, "--rootfs", image)
    assert (result.returncode, result.stdout) == (NOT_TRUSTED, "")
    assert re.fullmatch(rf"mystfuse: {path}: not trusted: [^\n]+\n", result.stderr)
    # As when the package itself is executed.
    result = run(
        path, check=False, env={"PATH": path_with_mystfuse, "MYST_ROOTFS": str(image), "MYSTFUSE_TRUST_SELF": "no"}
    )
    assert (result.returncode, result.stdout) == (NOT_TRUSTED, ""), result


def with_directory(name: str, directory: Path) -> list[str]:
    """The command with another configuration directory of the system."""
    module, variable = name.rsplit(".", 1)
    code = f"import pathlib, {module} as m; m.{variable} = pathlib.Path({str(directory)!r})"
    return [sys.executable, "-c", f"{code}\nfrom mystfuse.cli.main import main\nmain()"]


def test_the_directory_of_signers(
    package: Callable[..., Path], keys: Keys, image_keys: Keys, image: Path, tmp_path: Path
) -> None:
    path = package(ApplicationParameters=["hello"])
    signers = tmp_path / "signers.d"
    signers.mkdir()
    with_signers = with_directory("mystfuse.cli.commands.run.SIGNERS_DIRECTORY", signers)
    command = [*with_signers, "run", str(path), "--rootfs", str(image)]
    shutil.copy(image_keys[0], signers / "other.pem")
    result = run(*command, check=False)
    assert (result.returncode, result.stdout) == (NOT_TRUSTED, "")
    shutil.copy(keys[0], signers / "ours.pem")
    result = run(*command)
    assert (result.stdout, result.stderr) == ("hello\n", "")
    # A broken directory pins no signer and trusts no key.
    (signers / "broken.pem").write_text("?")
    assert run(*command, check=False).returncode == USAGE


def test_an_image_that_is_not_in_the_lists_is_refused(
    package: Callable[..., Path], image: Path, image_keys: Keys, keys: Keys, tmp_path: Path
) -> None:
    by_key = package("--pubkey", str(image_keys[0]), trusted=False, ApplicationParameters=["hello"])
    assert output(by_key, image) == "hello\n"
    other = package("--pubkey", str(keys[0]), "--roothash", "00" * 32, trusted=False)
    result = execute(other, image)
    assert (result.returncode, result.stdout) == (NOT_TRUSTED, "")
    assert "not trusted" in result.stderr
    # The machine's other trusted keys do not count.
    (tmp_path / "trust.d").mkdir()
    shutil.copy(image_keys[0], tmp_path / "trust.d/image.pem")
    command = with_directory("mystfuse.trust.sources.TRUST_DIRECTORY", tmp_path / "trust.d")
    assert run(*command, "exec", image, "/bin/echo", "hello").stderr == ""
    assert run(*command, "run", other, "--rootfs", image, check=False).returncode == NOT_TRUSTED


def test_debug_loads_anything(package: Callable[..., Path], image: Path, tmp_path: Path) -> None:
    path = package(trusted=False, Debug=True, ApplicationParameters=["hello"])
    bare = tmp_path / "bare.ext2"
    bare.write_bytes(image.read_bytes())
    os.truncate(bare, int(re.findall(r"hash_offset=(\d+)", in_process("fssig", image).stdout)[0]))
    for rootfs in image, bare:
        result = execute(path, rootfs)
        assert (result.returncode, result.stdout) == (0, "hello\n"), result
        assert "has Debug set: it loads any image" in result.stderr


def test_where_the_image_is(
    package: Callable[..., Path], image: Path, data_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "MYST_ROOTFS", "MYST_ROOTFS_PATH":
        monkeypatch.delenv(name, raising=False)
    path = package(ApplicationParameters=["hello"])
    assert output(path, None, env={"MYST_ROOTFS": str(image), "MYST_ROOTFS_PATH": "/absent"}) == "hello\n"
    assert output(path, None, env={"MYST_ROOTFS": "", "MYST_ROOTFS_PATH": str(image)}) == "hello\n"
    assert output(path, image, env={"MYST_ROOTFS": "/absent"}) == "hello\n"
    assert execute(path, data_image).returncode == NOT_TRUSTED
    absent = execute(path, Path("/absent.img"))
    assert absent.returncode == FAILED
    assert "/absent.img: No such file" in absent.stderr
    nowhere = in_process("run", path)
    assert nowhere.returncode == USAGE
    assert "give --rootfs IMAGE, or set MYST_ROOTFS" in nowhere.stderr
