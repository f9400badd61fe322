"""``mystfuse sign`` writes in place: what others do to the file, or see of it, meanwhile; what a crash can leave."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.errors import MystfuseError, NotTrusted
from mystfuse.formats.fssig import Fssig
from mystfuse.trust.policy import TrustPolicy, decide
from mystfuse.trust.signature import PublicKey
from tests.support.cli_in_process import in_process
from tests.support.commands import GROUP, USER, assert_one_line, mystfuse, run, wait_until
from tests.support.mounts import clear_mount

FAILED = 1
SECTOR = 512
COMMAND = [sys.executable, "-m", "mystfuse"]
MakeKeys = Callable[..., tuple[Path, Path]]


def test_a_mount_goes_on_as_it_was_and_a_new_one_sees_the_signature(image: Path, mountpoint: Path, pair: str) -> None:
    public = pair.partition(":")[0]
    try:
        assert mystfuse("mount", image, mountpoint).returncode == 0
        assert in_process("sign", f"--sign={pair}", image).returncode == 0
        assert (mountpoint / "hello.txt").read_text() == "hello\n"
        assert (mountpoint / "sub/deep/data.bin").read_bytes() == bytes(range(256)) * 1200
        status = json.loads(mystfuse("status", "--json", mountpoint).stdout)
        assert (status["trust"], status["blocks_failed"]) == ("self", 0), status
        assert mystfuse("umount", mountpoint).returncode == 0
        assert mystfuse("mount", "--pubkey", public, image, mountpoint).returncode == 0
        assert in_process("sign", "--remove", image).returncode == 0
        status = json.loads(mystfuse("status", "--json", mountpoint).stdout)
        assert status["trust"] == "signature", status
    finally:
        clear_mount(mountpoint)


def test_one_process_signs_at_a_time(image: Path, pair: str) -> None:
    before = image.read_bytes()
    with image.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = in_process("sign", f"--sign={pair}", image)
        assert_one_line(result, FAILED, "another process has locked it (is it being signed?)")
        assert in_process("sign", "--print-digest", image).returncode == 0
    assert image.read_bytes() == before
    assert in_process("sign", f"--sign={pair}", image).returncode == 0


def test_many_at_once_leave_the_signature_of_one(image: Path, make_keys: MakeKeys) -> None:
    pairs = [make_keys(f"sign-race-{number}", 2048, 65537) for number in range(3)]
    results = []
    for public, private in pairs * 2:
        command = [*COMMAND, "sign", f"--sign={public}:{private}", str(image)]
        results.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    outcomes = [(process.communicate(timeout=60)[1], process.returncode) for process in results]
    assert all(status == 0 or (status == 1 and "another process has locked it" in said) for said, status in outcomes)
    assert any(status == 0 for _, status in outcomes)
    assert sum(in_process("verify", "--pubkey", public, image).returncode == 0 for public, _ in pairs) == 1


def test_an_image_that_is_changed_or_replaced_meanwhile_is_left_alone(
    image: Path, tmp_path: Path, pair: str, small_image: Path, golden: dict[str, Path]
) -> None:
    """While it asks for the passphrase."""
    public, _, private = pair.partition(":")
    locked = tmp_path / "locked"
    run("openssl", "rsa", "-aes256", "-in", private, "-passout", "pass:x", "-out", locked)
    other = tmp_path / "other"
    block = tmp_path / "block"
    block.write_bytes(golden["signed-1024"].read_bytes()[-4096:])
    offset = image.stat().st_size // 4096 - 1
    for script, word in (
        (f"cp {small_image} {other}; mv {other} {image}", "another file has taken its name meanwhile"),
        (f"rm {image}", "another file has taken its name meanwhile"),
        (f"dd if={block} of={image} bs=4096 seek={offset} conv=notrunc status=none", "another process has changed it"),
        (f"truncate -s +4096 {image}", "another process has changed it"),
        (f"truncate -s 4096 {image}", "truncated: it ends at byte "),
    ):
        shutil.copy(small_image, image)
        command = f"sh -c '{script}; echo x'"
        result = in_process("sign", f"--sign={public}:{locked}", f"--sign-passphrase-command={command}", image)
        assert_one_line(result, FAILED, word)
        if image.exists():
            expected = small_image.read_bytes()
            if "dd" in script:
                expected = expected[:-4096] + block.read_bytes()
            if "truncate" in script:
                expected = image.read_bytes()
                assert expected.rstrip(b"\0") == small_image.read_bytes()[: len(expected)].rstrip(b"\0")
            assert image.read_bytes() == expected


def test_a_limit_on_file_sizes_changes_nothing(image: Path, pair: str) -> None:
    """Also one in the middle of the signature block, of which a part is written then."""
    before = image.read_bytes()
    for below in 4096, 2048, 1024:
        limit = (image.stat().st_size - below) // 1024
        command = [
            "bash",
            "-c",
            f'ulimit -f {limit}; exec "$@"',
            "bash",
            *COMMAND,
            "sign",
            f"--sign={pair}",
            str(image),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert_one_line(result, FAILED, f"{image}: cannot be written: ")
        assert image.read_bytes() == before, below


def test_what_may_not_be_written_is_reported(
    open_tmp_path: Path, small_image: Path, ordinary_user: list[str], make_keys: MakeKeys
) -> None:
    public, private = make_keys("sign", 2048, 65537)
    for path in public, private:
        shutil.copy(path, open_tmp_path / path.name)
        shutil.chown(open_tmp_path / path.name, USER, GROUP)
    sign = f"--sign={open_tmp_path / public.name}:{open_tmp_path / private.name}"
    image = open_tmp_path / "image"
    shutil.copy(small_image, image)
    image.chmod(0o644)
    before = image.read_bytes()
    result = run(*ordinary_user, "sign", sign, image, check=False, cwd=open_tmp_path)
    assert_one_line(result, FAILED, f"{image}: cannot be opened for writing: Permission denied")
    run("chattr", "+i", image)
    try:
        assert_one_line(
            in_process("sign", sign, image), FAILED, "cannot be opened for writing: Operation not permitted"
        )
    finally:
        run("chattr", "-i", image)
    assert image.read_bytes() == before
    shutil.chown(image, USER, GROUP)
    # An ordinary user's links are followed, and other names are as good.
    (open_tmp_path / "link").symlink_to("image")
    os.link(image, open_tmp_path / "name")
    open_tmp_path.chmod(0o755)
    result = run(*ordinary_user, "sign", sign, open_tmp_path / "link", cwd=open_tmp_path)
    assert result.stdout.startswith(f"{open_tmp_path}/link: root hash ")
    assert (open_tmp_path / "name").read_bytes() == image.read_bytes() != before


def test_root_follows_its_own_links_alone(image: Path, open_tmp_path: Path, pair: str) -> None:
    before = image.read_bytes()
    link, chain, theirs = (open_tmp_path / name for name in ("link", "chain", "theirs"))
    link.symlink_to(image)
    (open_tmp_path / "directory").mkdir()
    (open_tmp_path / "directory/back").symlink_to("../link")
    chain.symlink_to("directory/back")
    theirs.symlink_to(link)
    os.lchown(theirs, USER, GROUP)
    assert_one_line(
        in_process("sign", f"--sign={pair}", theirs), FAILED, "is a symbolic link of user", "does not follow"
    )
    above = open_tmp_path / "above"
    above.symlink_to(image.parent)
    os.lchown(above, USER, GROUP)
    assert_one_line(in_process("sign", f"--sign={pair}", above / image.name), FAILED, "is a symbolic link of user")
    assert image.read_bytes() == before
    assert in_process("sign", f"--sign={pair}", chain).returncode == 0
    assert image.read_bytes() != before and chain.is_symlink()
    os.link(image, image.with_name("other-name"))
    assert_one_line(in_process("sign", "--remove", image), FAILED, "it has other names too (hard links)")


def test_root_signs_no_file_that_another_put_into_a_directory_for_all(
    open_tmp_path: Path, small_image: Path, pair: str
) -> None:
    open_tmp_path.chmod(0o1777)
    image = open_tmp_path / "image"
    shutil.copy(small_image, image)
    os.chown(image, USER, GROUP)
    assert_one_line(in_process("sign", f"--sign={pair}", image), FAILED, f"it is user {USER}'s")
    assert image.read_bytes() == small_image.read_bytes()


def test_a_block_device_is_signed_too(image: Path, pair: str) -> None:
    device = run("losetup", "--find", "--show", image).stdout.strip()
    try:
        result = in_process("sign", f"--sign={pair}", device)
        assert result.returncode == 0, result
    finally:
        run("losetup", "--detach", device)
    assert in_process("verify", "--pubkey", pair.partition(":")[0], image).returncode == 0


def test_an_interrupt_at_the_prompt_leaves_nothing(image: Path, tmp_path: Path, pair: str) -> None:
    public, _, private = pair.partition(":")
    locked, said = tmp_path / "locked", tmp_path / "pid"
    run("openssl", "rsa", "-aes256", "-in", private, "-passout", "pass:x", "-out", locked)
    before = image.read_bytes()
    for number in 2, 15, 1:
        said.unlink(missing_ok=True)
        asks = f"--sign-passphrase-command=sh -c 'echo $$ > {said}; exec sleep 1000'"
        command = [*COMMAND, "sign", f"--sign={public}:{locked}", asks, str(image)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: said.exists() and said.read_text() != "")
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
        assert (process.returncode, output, errors) == (FAILED, "", "mystfuse: interrupted\n")
        wait_until(lambda: not Path(f"/proc/{said.read_text().strip()}").exists())
    assert image.read_bytes() == before
    assert in_process("sign", f"--sign={pair}", image).returncode == 0


def test_whatever_a_crash_leaves_is_never_trusted_wrongly_and_is_signed_again(
    image: Path, make_keys: MakeKeys, tmp_path: Path
) -> None:
    """A disk that does not write the block at once, but each sector of it, has written any of them."""
    keys = {bits: make_keys(f"sign-{bits}", bits, 65537) for bits in (2048, 4096)}
    unsigned = image.read_bytes()
    states = {0: unsigned[-4096:]}
    for bits, (public, private) in keys.items():
        assert in_process("sign", f"--sign={public}:{private}", image).returncode == 0
        states[bits] = image.read_bytes()[-4096:]
    trusted = {bits: PublicKey.from_pem(public.read_bytes(), "key") for bits, (public, _) in keys.items()}
    seen = set(states.values())
    for old, new in itertools.permutations(states, 2):
        for chosen in itertools.product((old, new), repeat=3):
            # Nothing is in the other sectors.
            block = b"".join(
                states[which][number * SECTOR : (number + 1) * SECTOR] for number, which in enumerate(chosen)
            )
            block = block.ljust(4096, b"\0")
            fssig = Fssig.parse(block)
            assert (fssig.hash_offset, fssig.root_hash) == (
                Fssig.parse(states[0]).hash_offset,
                Fssig.parse(states[0]).root_hash,
            )
            believed = [bits for bits, key in trusted.items() if _is_believed(fssig, key)]
            # One of the two, or nobody: a signature is right as a whole only.
            assert set(believed) <= {old, new} - {0} and len(believed) <= 1
            if block not in seen:
                seen.add(block)
                image.write_bytes(unsigned[:-4096] + block)
                public, private = keys[2048]
                assert in_process("sign", "--quiet", f"--sign={public}:{private}", image).returncode == 0
                assert image.read_bytes() == unsigned[:-4096] + states[2048]
    assert len(seen) > 10


def _is_believed(fssig: Fssig, key: PublicKey) -> bool:
    try:
        decide(fssig, TrustPolicy(public_keys=(key,)))
    except NotTrusted:
        return False
    return True


def test_a_failed_write_leaves_the_old_block(image: Path, pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.read_bytes()
    real = os.pwrite

    def short(descriptor: int, data: bytes, offset: int) -> int:
        # A full disk, on a file system that does not overwrite in place.
        monkeypatch.setattr(os, "pwrite", real)
        return real(descriptor, data[:1000], offset)

    monkeypatch.setattr(os, "pwrite", short)
    assert_one_line(in_process("sign", f"--sign={pair}", image), FAILED, "only 1000 of 4096 bytes")
    assert image.read_bytes() == before


def test_a_disk_that_fails_at_the_end_is_reported(image: Path, pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    result = in_process("sign", f"--sign={pair}", image)
    assert_one_line(result, FAILED, "written, but may not be on disk: Input/output error")


def test_the_block_is_written_at_once_and_synced(image: Path, tmp_path: Path, pair: str) -> None:
    """What the promise for kills rests on: one write of 4096 bytes, a page of the file."""
    trace = tmp_path / "trace"
    run("strace", "-f", "-y", "-e", "trace=pwrite64,write,fdatasync,fsync", "-o", trace, *COMMAND,
        "sign", f"--sign={pair}", image)  # fmt: skip
    calls = [
        line.split(None, 1)[1]
        for line in trace.read_text().splitlines()
        if str(image) in line and "resumed" not in line
    ]
    calls = [call for call in calls if not call.startswith("write(1")]
    offset = image.stat().st_size - 4096
    assert len(calls) == 2, calls
    assert calls[0].startswith("pwrite64(") and f'"..., 4096, {offset})' in calls[0], calls
    assert offset % 4096 == 0
    assert calls[1].startswith("fdatasync("), calls


def test_only_writing_fails(image: Path) -> None:
    """The class by itself: what it raises is ours."""
    from mystfuse.build.sign import ImageToSign

    with ImageToSign(str(image), 30) as opened, pytest.raises(MystfuseError, match="has changed it meanwhile"):
        opened.write_fssig(Fssig(4096, bytes(32)))
