"""``mystfuse package`` and ``run``: what a package says is what happens, and nothing else is believed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mystfuse.container.resource_limits import limited_resources, make_group, make_pids_group
from mystfuse.errors import FormatError, MystfuseError, NotTrusted, UsageError
from mystfuse.formats.configuration import Configuration
from mystfuse.formats.package import PACKAGE_HEADER, PackageContents, PackageFile
from mystfuse.trust.package import open_package, sign_package
from mystfuse.trust.signature import PublicKey, SigningKey
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run

FAILED, USAGE, NOT_TRUSTED, KEY, FORMAT = 1, 2, 3, 5, 6
KILLED = 128 + 9
APPLETS = ("sh", "cat", "dd", "echo", "env", "false", "head", "hostname", "ls", "pwd", "rm", "stat", "tail", "touch")
SHELL = {"ApplicationPath": "/bin/sh"}
COMMAND = [sys.executable, "-m", "mystfuse"]

Keys = tuple[Path, Path]


@pytest.fixture(scope="session")
def keys(make_keys: Callable[..., Keys]) -> Keys:
    """Who signs the packages: public, private. (A private key is checked when it is read, a large one for long.)"""
    return make_keys("package", bits=2048)


@pytest.fixture(scope="session")
def image_keys(make_keys: Callable[..., Keys]) -> Keys:
    """Who signs the images: public, private."""
    return make_keys("image")


@pytest.fixture(scope="session")
def signing_key(keys: Keys) -> SigningKey:
    return SigningKey.from_pem(keys[1].read_bytes(), "private.pem")


@pytest.fixture(scope="session")
def image(image_keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system of busybox, signed by ``image_keys``."""
    root = tmp_path_factory.mktemp("rootfs")
    for name in "bin", "work", "tmp":
        (root / "tree" / name).mkdir(parents=True)
    shutil.copy(run("sh", "-c", "command -v busybox").stdout.strip(), root / "tree/bin/busybox")
    for applet in APPLETS:
        (root / "tree/bin" / applet).symlink_to("busybox")
    (root / "tree/hello").write_text("from the root\n")
    result = mystfuse(
        "mkext2", "--sign", f"{image_keys[0]}:{image_keys[1]}", "--free", "8M", root / "tree", root / "rootfs.img"
    )
    assert result.returncode == 0, result.stderr
    return root / "rootfs.img"


@pytest.fixture(scope="session")
def data_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unsigned image with a file ``data``."""
    root = tmp_path_factory.mktemp("data")
    (root / "tree").mkdir()
    (root / "tree/data").write_text("from the image\n")
    assert mystfuse("mkext2", root / "tree", root / "data.img").returncode == 0
    return root / "data.img"


def root_hash(image: Path) -> str:
    return in_process("fssig", "--roothash", image).stdout.strip()


@pytest.fixture
def package(tmp_path: Path, keys: Keys, image: Path) -> Callable[..., Path]:
    """Makes a package that trusts ``image``, of the settings given beside a version and a path."""

    def make(*options: str, trusted: bool = True, **settings: Any) -> Path:
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"version": "0.1", "ApplicationPath": "/bin/echo", **settings}))
        out = tmp_path / "package"
        trust = ["--roothash", root_hash(image)] if trusted else []
        result = in_process("package", *trust, *options, "--force", "-o", out, keys[1], config)
        assert result.returncode == 0, result.stderr
        return out

    return make


@pytest.fixture
def refused(tmp_path: Path, keys: Keys) -> Callable[[Any], str]:
    """Makes a package of a configuration that must be refused; gives the one line that says why."""

    def refuse(settings: Any) -> str:
        config = tmp_path / "config.json"
        config.write_text(settings if isinstance(settings, str) else json.dumps(settings))
        result = in_process("package", "--roothash", "00" * 32, "-o", tmp_path / "never", keys[1], config)
        assert (result.returncode, result.stdout) == (USAGE, "")
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "never").exists()
        return result.stderr

    return refuse


def execute(
    package: Path, image: Path | None, *arguments: str | Path, **kwargs: Any
) -> subprocess.CompletedProcess[str]:
    """Run a package with its own signer pinned by nobody; without the line that says so."""
    rootfs = ["--rootfs", image] if image is not None else []
    result = mystfuse("run", package, *rootfs, *arguments, **kwargs)
    result.stderr = "".join(
        line for line in result.stderr.splitlines(keepends=True) if "vouched for by nobody but itself" not in line
    )
    return result


def refused_run(package: Path, *arguments: str | Path) -> str:
    """The one line that says why a package is not run with these arguments. Its root file system is not there, and
    would be missed only later."""
    result = in_process("run", package, "--rootfs", "/absent.img", *arguments)
    assert (result.returncode, result.stdout) == (USAGE, "")
    lines = [line for line in result.stderr.splitlines() if "vouched for by nobody but itself" not in line]
    assert len(lines) == 1
    return lines[0]


def output(package: Path, image: Path | None, *arguments: str | Path, **kwargs: Any) -> str:
    result = execute(package, image, *arguments, **kwargs)
    assert (result.returncode, result.stderr) == (0, ""), result
    return result.stdout


def script(text: str) -> dict[str, Any]:
    """Settings of a package that runs a shell script."""
    return {"ApplicationPath": "/bin/sh", "ApplicationParameters": ["-c", text]}


# Settings


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("version", "0.2"),
        ("version", 0.1),
        ("Debug", "yes"),
        ("Debug", 2),
        ("Debug", None),
        ("ProductID", "one"),
        ("ProductID", True),
        ("ProductID", 65536),
        ("SecurityVersion", -1),
        ("MemorySize", "40x"),
        ("MemorySize", "-1"),
        ("MemorySize", "4k"),
        ("MemorySize", 1.5e9),
        ("MemorySize", "9" * 18 + "g"),
        ("UserMemSize", []),
        ("ApplicationPath", "bin/hello"),
        ("ApplicationPath", "/bin/../hello"),
        ("ApplicationPath", "/bin/"),
        ("ApplicationPath", "/"),
        ("ApplicationPath", ["/bin/hello"]),
        ("ApplicationPath", "/" + "x" * 5000),
        ("ApplicationParameters", [1]),
        ("ApplicationParameters", {"a": "b"}),
        ("ApplicationParameters", ["a\0b"]),
        ("ApplicationParameters", ["\ud800"]),
        ("ApplicationParameters", ["x"] * 1025),
        ("ApplicationParameters", ["x" * 40000]),
        ("HostApplicationParameters", "true"),
        ("EnvironmentVariables", ["NOVALUE"]),
        ("EnvironmentVariables", ["=x"]),
        ("EnvironmentVariables", ["A=1", "A=2"]),
        ("HostEnvironmentVariables", ["A=1"]),
        ("HostEnvironmentVariables", [""]),
        ("CurrentWorkingDirectory", "work"),
        ("CurrentWorkingDirectory", 7),
        ("Hostname", "a b"),
        ("Hostname", "x" * 65),
        ("Hostname", ""),
        ("MaxAffinityCPUs", "two"),
        ("ThreadStackSize", "big"),
        ("Mount", {"Target": "/x"}),
        ("Mount", ["/x"]),
        ("Memorysize", "40m"),
        ("Secret", []),
    ],
)
def test_a_bad_setting_is_refused_by_its_name(setting: str, value: Any, refused: Callable[[Any], str]) -> None:
    line = refused({"version": "0.1", "ApplicationPath": "/bin/echo", setting: value})
    assert f"config.json: {setting}: " in line


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"Type": "ramfs"}, "Mount[0].Target: missing"),
        ({"Target": "/x"}, "Mount[0].Type: missing"),
        ({"Target": "x", "Type": "ramfs"}, "Mount[0].Target: "),
        ({"Target": "/", "Type": "ramfs"}, "Mount[0].Target: "),
        ({"Target": "/x", "Type": "nfs"}, "Mount[0].Type: "),
        ({"Target": "/x", "Type": []}, "Mount[0].Type: "),
        ({"Target": "/x", "Type": "ramfs", "Flags": ["noexec"]}, "Mount[0].Flags: 'noexec' is unknown"),
        ({"Target": "/x", "Type": "ramfs", "Flags": ["ro", "rw"]}, "Mount[0].Flags: "),
        ({"Target": "/x", "Type": "ramfs", "Source": "/y"}, "Mount[0].Source: no such setting"),
        ({"Target": "/x", "Type": "hostfs", "Roothash": "00" * 32}, "Mount[0].Roothash: "),
        ({"Target": "/x", "Type": "ext2", "Roothash": 5}, "Mount[0].Roothash: must be a string"),
        ({"Target": "/x", "Type": "ext2", "Roothash": "absent"}, "Mount[0].Roothash "),
        ({"Target": "/x", "Type": "ext2", "Roothash": "00" * 64}, "Mount[0].Roothash "),
        ({"Target": "/x", "Type": "ext2", "Roothash": "a", "RootHash": "a"}, "Mount[0]: Roothash and RootHash"),
        ({"Target": "/x", "Type": "ext2", "PublicKey": "absent.pem"}, "Mount[0].PublicKey "),
        ({"Target": "/x", "Type": "ext2", "PublicKey": "a\0b"}, "Mount[0].PublicKey: "),
        ({"Target": "/x", "Type": "ext2", "PublicKey": "\ud800"}, "Mount[0].PublicKey: "),
    ],
)
def test_a_bad_mount_is_refused_by_its_name(entry: Any, what: str, refused: Callable[[Any], str]) -> None:
    assert what in refused({"version": "0.1", "ApplicationPath": "/bin/echo", "Mount": [entry]})


def test_what_is_missing_or_twice_is_named(refused: Callable[[Any], str]) -> None:
    assert "ApplicationPath: missing" in refused({"version": "0.1"})
    assert "version: missing" in refused({"ApplicationPath": "/bin/echo"})
    assert "Debug is in it twice" in refused('{"version": "0.1", "Debug": 1, "Debug": 0}')
    target = {"Target": "/x", "Type": "ramfs"}
    assert "Mount[1].Target: /x is a target twice" in refused(
        {"version": "0.1", "ApplicationPath": "/a", "Mount": [target, target]}
    )
    both = {"version": "0.1", "ApplicationPath": "/a", "MemorySize": "2m", "UserMemSize": "2m"}
    assert "UserMemSize: the older name of MemorySize" in refused(both)
    for text in "", "[]", "{", "NaN", '{"Debug": Infinity}', "[" * 100_000, '{"a":' + "9" * 5000 + "}":
        assert "config.json: not JSON as it should be" in refused(text)


def test_settings_come_through_their_canonical_form() -> None:
    configuration = Configuration.of(
        {
            "version": "0.1",
            "Debug": 1,
            "ProductID": 7,
            "SecurityVersion": 8,
            "UserMemSize": "40m",
            "ApplicationPath": "/bin/hello",
            "ApplicationParameters": "red",
            "HostApplicationParameters": 0,
            "EnvironmentVariables": ["A=1", "B=a=b", "C="],
            "HostEnvironmentVariables": ["T"],
            "CurrentWorkingDirectory": "/work",
            "Hostname": "box.example",
            "Mount": [{"Target": "/x", "Type": "ramfs", "Flags": ["ro"], "PublicKey": None}],
            "NumUserThreads": 2,
        }
    )
    settings = configuration.settings()
    assert settings["MemorySize"] == 40 << 20
    assert settings["Debug"] is True
    assert settings["ApplicationParameters"] == ["red"]
    assert settings["EnvironmentVariables"] == ["A=1", "B=a=b", "C="]
    assert Configuration.of(settings) == configuration


def test_what_has_no_meaning_here_is_named(tmp_path: Path, keys: Keys) -> None:
    settings = {"ProductID": 3, "SecurityVersion": 4, "NumUserThreads": 2, "ForkMode": "pseudo", "MainStackSize": "8m"}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"version": "0.1", "ApplicationPath": "/bin/echo", **settings}))
    make = ("package", "--roothash", "00" * 32, "--force", "-o", tmp_path / "out", keys[1], config)
    assert in_process(*make).stdout == ""
    verbose = in_process(*make, "--verbose").stdout
    for name, value in settings.items():
        assert f"{name}={value}: accepted, but has no meaning outside an enclave\n" in verbose
    assert f"{tmp_path}/out: runs /bin/echo, trusts 1 root hashes" in verbose


# The file


def test_openssl_alone_verifies_a_package(package: Callable[..., Path], keys: Keys, tmp_path: Path) -> None:
    """The commands of docs/package-format.md."""
    path = package()
    document = (Path(__file__).parents[2] / "docs/package-format.md").read_text()
    commands = re.search(r"^(head -n -1 .*?)```", document, re.DOTALL | re.MULTILINE)
    assert commands is not None
    (tmp_path / "signer.pem").write_bytes(keys[0].read_bytes())
    text = commands[1].replace("myst/bin/hello", str(path))
    assert "Verified OK" in run("sh", "-ec", text, cwd=tmp_path).stdout
    assert PublicKey.from_pem((tmp_path / "claimed.pem").read_bytes(), "").is_same_as(
        PublicKey.from_pem(keys[0].read_bytes(), "")
    )
    changed = bytearray(path.read_bytes())
    changed[20] ^= 1
    path.write_bytes(changed)
    result = run("sh", "-ec", text, cwd=tmp_path, check=False)
    assert result.returncode != 0
    assert "Verified OK" not in result.stdout


def test_the_documents_example_is_what_we_write() -> None:
    document = (Path(__file__).parents[2] / "docs/package-format.md").read_text()
    example = re.search(r"```text\n(#!/bin/sh.*?)```", document, re.DOTALL)
    assert example is not None
    header, contents = example[1].encode().split(b"exit 127\n")
    assert header + b"exit 127\n" == PACKAGE_HEADER
    assert f"| header | {len(PACKAGE_HEADER)} |" in document
    assert PackageContents.parse(contents.splitlines()[0]).configuration.application_path == "/bin/hello"


def test_the_same_settings_make_the_same_bytes(package: Callable[..., Path], image_keys: Keys, keys: Keys) -> None:
    hashes = ["--roothash", "11" * 32, "--roothash", "AA" * 32]
    first = package(*hashes, "--pubkey", str(image_keys[0]), "--pubkey", str(keys[0]), Debug=0).read_bytes()
    second = package(*hashes[2:], *hashes, "--pubkey", str(keys[0]), "--pubkey", str(image_keys[0])).read_bytes()
    assert first == second


def test_200_random_changes_of_one_byte_are_refused(
    package: Callable[..., Path], image_keys: Keys, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a root file system: a package that was believed would end with that, not be run.
    monkeypatch.delenv("MYST_ROOTFS", raising=False)
    monkeypatch.delenv("MYST_ROOTFS_PATH", raising=False)
    path = package("--pubkey", str(image_keys[0]), MemorySize="40m", Mount=[{"Target": "/x", "Type": "ramfs"}])
    original = path.read_bytes()
    assert "no root file system" in in_process("run", path).stderr
    chance = random.Random(5)
    for _ in range(200):
        changed = bytearray(original)
        changed[chance.randrange(len(changed))] ^= chance.randrange(1, 256)
        path.write_bytes(changed)
        for signer in (), ("--signer", keys[0]):
            result = in_process("run", *signer, path)
            assert result.returncode in (NOT_TRUSTED, FORMAT), result
            assert result.stderr.count("\n") == 1


def test_every_byte_counts(package: Callable[..., Path]) -> None:
    original = package().read_bytes()
    open_package(original, [])
    for position in range(len(original)):
        changed = bytearray(original)
        changed[position] ^= 1
        with pytest.raises((NotTrusted, FormatError)):
            open_package(bytes(changed), [])


def test_a_changed_first_line_is_refused_by_run(package: Callable[..., Path]) -> None:
    path = package()
    path.write_bytes(path.read_bytes().replace(b"exec mystfuse run", b"exec mystfuse RUN", 1))
    result = in_process("run", path)
    assert result.returncode == FORMAT
    assert "its first lines were changed" in result.stderr


def test_truncated_and_extended_packages_are_refused(package: Callable[..., Path]) -> None:
    original = package().read_bytes()
    for length in range(len(original)):
        with pytest.raises(MystfuseError):
            open_package(original[:length], [])
    for more in b"\n", b"\0", b" ", b"echo hello\n", original:
        with pytest.raises(FormatError):
            open_package(original + more, [])
    with pytest.raises(FormatError, match="larger than"):
        open_package(original + bytes(1 << 20), [])


def signed(contents: bytes, key: SigningKey) -> bytes:
    """A package file around any contents, rightly signed."""

    class Contents:
        root_hashes = public_keys = ()

        def pack(self) -> bytes:
            return contents

    return sign_package(Contents(), key)  # type: ignore[arg-type]


def test_signed_contents_must_be_canonical(signing_key: SigningKey) -> None:
    good = PackageContents(Configuration("/bin/echo"), ("00" * 32,)).pack()
    open_package(signed(good, signing_key), [])
    value = json.loads(good)
    others = [
        b"",
        b"[]",
        b"null",
        b"[" * 100_000,
        good + b" ",
        b" " + good,
        good.replace(b",", b", ", 1),
        good.replace(b"Debug", b"\\u0044ebug"),
        good.replace(b'"Debug":false', b'"Debug":0'),
        good.replace(b'"Debug":false', b'"Debug":false,"Debug":true'),
        good.replace(b'"Debug":false,', b""),
        good.replace(b'"version":1}', b'"version":2}'),
        good.replace(b'"version":1}', b'"version":1.0}'),
        good.replace(b'"version":1}', b'"version":true}'),
        good.replace(b'"version":1}', b'"more":1,"version":1}'),
        json.dumps(value).encode(),
        good.replace(b"00" * 32, b"AA" * 32),
        good.replace(b"00" * 32, b"00" * 31),
        good.replace(b'"' + b"00" * 32 + b'"', b"7"),
        good.replace(b'["' + b"00" * 32 + b'"]', b'["' + b"00" * 32 + b'","' + b"00" * 32 + b'"]'),
        good.replace(b"/bin/echo", b"bin/echo"),
    ]
    for contents in others:
        with pytest.raises(FormatError):
            open_package(signed(contents, signing_key), [])


def test_impossible_public_keys_in_a_signed_package(signing_key: SigningKey) -> None:
    for text in "", "not a key", "\ud800":
        contents = PackageContents(Configuration("/bin/echo"), (), (text,))
        opened = open_package(sign_package(contents, signing_key), [])
        with pytest.raises(FormatError, match="not a PEM public key"):
            opened.policy()


def test_the_signers_key_has_one_spelling(package: Callable[..., Path]) -> None:
    file = PackageFile.parse(package().read_bytes())
    for signer in file.signer + b"\0", b"\x30\x83\0" + file.signer[2:], b"x" * 3000, b"x" * 5000:
        with pytest.raises(FormatError):
            open_package(PackageFile(file.unverified_contents, signer, file.signature).pack(), [])


def test_a_package_can_only_be_so_large(signing_key: SigningKey) -> None:
    with pytest.raises(UsageError, match="are the most"):
        sign_package(PackageContents(Configuration("/a", tuple("x" * 30_000 for _ in range(40)))), signing_key)
    hashes = tuple(f"{number:064x}" for number in range(1025))
    with pytest.raises(UsageError, match="and no more"):
        sign_package(PackageContents(Configuration("/a"), hashes), signing_key)
    open_package(sign_package(PackageContents(Configuration("/a"), hashes[:1024]), signing_key), [])


# Making


def test_the_default_name_and_mode(tmp_path: Path, keys: Keys) -> None:
    (tmp_path / "config.json").write_text('{"version": "0.1", "ApplicationPath": "/usr/bin/hello"}')
    make = [*COMMAND, "package-sgx", f"--roothash={'00' * 32}", str(keys[1]), "config.json"]
    assert run(*make, cwd=tmp_path).stderr == ""
    out = tmp_path / "myst/bin/hello"
    assert out.stat().st_mode & 0o7777 == 0o755
    before = out.read_bytes()
    again = run(*make, cwd=tmp_path, check=False)
    assert again.returncode == FAILED
    assert "myst/bin/hello: already exists (--force overwrites it)" in again.stderr
    (tmp_path / "config.json").write_text('{"version": "0.1", "ApplicationPath": "/other/hello"}')
    run(*make, "--force", cwd=tmp_path)
    assert out.read_bytes() != before
    assert sorted(os.listdir(out.parent)) == ["hello"]


def test_a_package_must_trust_somebody(tmp_path: Path, keys: Keys) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"version": "0.1", "ApplicationPath": "/bin/echo"}')
    result = in_process("package", "-o", tmp_path / "out", keys[1], config)
    assert result.returncode == USAGE
    assert "give --roothash or --pubkey" in result.stderr


def test_what_cannot_sign_or_be_trusted_is_refused(tmp_path: Path, keys: Keys) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"version": "0.1", "ApplicationPath": "/bin/echo"}')
    encrypted = tmp_path / "encrypted.pem"
    run("openssl", "rsa", "-in", keys[1], "-aes128", "-passout", "pass:x", "-out", encrypted)
    small = tmp_path / "small.pem"
    run("openssl", "genrsa", "-out", small, "1024")
    for private, options, what in (
        (keys[0], ("--roothash", "00" * 32), "not a PEM private key"),
        (encrypted, ("--roothash", "00" * 32), "is encrypted"),
        (small, ("--roothash", "00" * 32), "an RSA key of 1024 bits"),
        (tmp_path / "absent", ("--roothash", "00" * 32), "No such file"),
        (keys[1], ("--roothash", "00" * 31), "--roothash"),
        (keys[1], ("--roothash", "00" * 64), "sha512"),
        (keys[1], ("--pubkey", keys[1]), "not a PEM public key"),
    ):
        result = in_process("package", *options, "-o", tmp_path / "out", private, config)
        assert result.returncode == USAGE, result
        assert what in result.stderr
        assert result.stderr.count("\n") == 1


# Who signed it


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
    # As it is when the package itself is executed.
    result = run(
        path, check=False, env={"PATH": path_with_mystfuse, "MYST_ROOTFS": str(image), "MYSTFUSE_TRUST_SELF": "no"}
    )
    assert (result.returncode, result.stdout) == (NOT_TRUSTED, ""), result


def with_directory(name: str, directory: Path) -> list[str]:
    """The command with another directory of the system's configuration."""
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
    # A broken directory pins nobody, and trusts nobody.
    (signers / "broken.pem").write_text("?")
    assert run(*command, check=False).returncode == USAGE


# Which images


def test_an_image_that_is_not_in_the_lists_is_refused(
    package: Callable[..., Path], image: Path, image_keys: Keys, keys: Keys, tmp_path: Path
) -> None:
    by_key = package("--pubkey", str(image_keys[0]), trusted=False, ApplicationParameters=["hello"])
    assert output(by_key, image) == "hello\n"
    other = package("--pubkey", str(keys[0]), "--roothash", "00" * 32, trusted=False)
    result = execute(other, image)
    assert (result.returncode, result.stdout) == (NOT_TRUSTED, "")
    assert "not trusted" in result.stderr
    # What this machine trusts otherwise does not count.
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


# What is run, and how


def test_arguments(package: Callable[..., Path], image: Path) -> None:
    own = package(ApplicationParameters=["own", "two words"])
    assert output(own, image) == "own two words\n"
    extra = refused_run(own, "extra")
    assert "extra: " in extra
    assert "HostApplicationParameters is false" in extra
    from_host = package(ApplicationParameters=["own"], HostApplicationParameters=True)
    assert output(from_host, image) == "\n"
    assert output(from_host, image, "a", "-n", "--rootfs=x") == "a -n --rootfs=x\n"
    assert output(from_host, image, "--", "-e", "--rootfs") == "--rootfs\n"
    assert "No such option '--absent'" in refused_run(from_host, "--absent", "x")
    assert "No such option '--absent'" in refused_run(from_host, "--absent")
    assert "'--signer' requires an argument" in refused_run(from_host, "--signer")
    assert in_process("run").returncode == USAGE


def test_exit_status_is_the_programs(package: Callable[..., Path], image: Path) -> None:
    assert execute(package(**script("exit 3")), image).returncode == 3
    assert execute(package(**script("kill -9 $$")), image).returncode == KILLED
    absent = execute(package(ApplicationPath="/bin/absent"), image)
    assert (absent.returncode, absent.stdout) == (127, "")


def test_environment_is_what_the_package_says(package: Callable[..., Path], image: Path) -> None:
    path = package(
        ApplicationPath="/bin/env",
        EnvironmentVariables=["A=1", "EMPTY=", "OURS=signed"],
        HostEnvironmentVariables=["TESTNAME", "OURS", "UNSET"],
    )
    lines = output(path, image, env={"TESTNAME": "x y", "OURS": "host", "OTHER": "no"}).splitlines()
    # bubblewrap says where it starts the program.
    assert sorted(line for line in lines if not line.startswith("PWD=")) == [
        "A=1",
        "EMPTY=",
        "OURS=signed",
        "TESTNAME=x y",
    ]


def test_hostname_and_directory(package: Callable[..., Path], image: Path) -> None:
    path = package(**script("hostname; pwd"), Hostname="box.example", CurrentWorkingDirectory="/work")
    assert output(path, image) == "box.example\n/work\n"
    assert output(package(**script("pwd")), image) == "/\n"


def test_memory_is_bounded(package: Callable[..., Path], image: Path) -> None:
    hungry = {"ApplicationPath": "/bin/tail", "ApplicationParameters": ["/dev/zero"], "MemorySize": "16m"}
    result = execute(package(**hungry), image)
    # A control group kills, a resource limit refuses.
    assert result.returncode == KILLED or "out of memory" in result.stderr
    assert output(package(**script("head -c 4000000 /dev/zero | tail | head -c 1 | cat -v"), MemorySize="16m"), image)
    assert output(package(ApplicationParameters=["small"], MemorySize="8m"), image) == "small\n"


def test_what_is_written_is_bounded_too(package: Callable[..., Path], image: Path) -> None:
    write = "dd if=/dev/zero of={0}/x bs=64k count=144 2>/dev/null || echo full; rm {0}/x"
    path = package(**script(write.format("/work")), MemorySize="8m")
    assert output(path, image) == "full\n"
    text = f"{write.format('/tmp')}; {write.format('/ram')}"
    path = package(**script(text), MemorySize="8m", Mount=[{"Target": "/ram", "Type": "ramfs"}])
    result = execute(path, image)
    # In a control group, these count as the program's memory.
    assert result.stdout == "full\nfull\n" or result.returncode == KILLED


def test_a_program_is_put_into_its_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
    root = next((root for root in roots if (root / "cgroup.procs").exists() and os.access(root, os.W_OK)), None)
    if root is None:
        pytest.skip("no control groups of version 2 that may be changed")
    group = root / f"mystfuse-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group can be made")
    monkeypatch.setattr("mystfuse.container.resource_limits.make_group", lambda settings: (group, frozenset(settings)))
    with limited_resources(1 << 24) as limit:
        said = subprocess.run(
            ["cat", "/proc/self/cgroup"], preexec_fn=limit, capture_output=True, text=True, check=True, timeout=60
        )
        assert f"0::/{group.name}\n" in said.stdout
    assert not group.exists()


def test_a_control_group_is_made_where_it_can_be(tmp_path: Path) -> None:
    """On plain files: which group is taken, and what is written. (Nothing here makes a kernel obey.)"""
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    own = root / "user.slice/shell.scope"
    own.mkdir(parents=True)
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("3:pids:/a\n1:name=systemd:/x\n0::/user.slice/shell.scope\n")
    memory = {"memory": {"memory.max": "1048576"}}
    assert make_group(memory, proc, (root,)) is None
    (root / "cgroup.controllers").write_text("memory pids\n")
    (own / "cgroup.subtree_control").write_text("\n")
    (root / "user.slice/cgroup.subtree_control").write_text("cpu pids\n")
    assert make_group(memory, proc, (tmp_path / "absent", root)) is None
    (root / "user.slice/cgroup.subtree_control").write_text("cpu memory\n")
    left_behind = root / "user.slice/mystfuse-99999999"
    left_behind.mkdir()
    # A directory of a real control group has files as soon as it is made; this one has none, so it is given back.
    assert make_group(memory, proc, (root,)) is None
    assert make_pids_group(10, proc, root) is None
    assert sorted(os.listdir(root / "user.slice")) == ["cgroup.subtree_control", "shell.scope"]


def test_each_controller_that_is_there_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On plain files, in which groups are made with what the kernel would put there."""
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    (root / "a").mkdir(parents=True)
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("3:pids:/a\n0::/\n")
    (root / "cgroup.controllers").touch()
    for place in root, root / "a":
        (place / "cgroup.procs").touch()
    make = Path.mkdir

    def mkdir(path: Path, *words: Any) -> None:
        make(path, *words)
        for name in "memory.max", "pids.max", "cgroup.procs":
            (path / name).touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    settings = {"memory": {"memory.max": "77", "memory.swap.max": "0"}, "pids": {"pids.max": "9"}}
    for control, expected in ("memory pids", {"77", "9"}), ("memory", {"77", ""}), ("cpu pids", {"", "9"}):
        (root / "cgroup.subtree_control").write_text(f"{control}\n")
        made = make_group(settings, proc, (root,))
        assert made is not None and made[1] == set(control.split()) - {"cpu"}
        assert {(made[0] / name).read_text() for name in ("memory.max", "pids.max")} == expected
        shutil.rmtree(made[0])
    old = make_pids_group(9, proc, root)
    assert old is not None and old.parent == root / "a" and (old / "pids.max").read_text() == "9"


# Mounts


def test_mounts(package: Callable[..., Path], image: Path, data_image: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "file").write_text("from the host\n")
    text = (
        "cat /host/file /ro/file /one/file /data/data; echo x >> /one/file || echo read-only; ls -A /ram;"
        " touch /ram/x /host/new /data/new;"
        "touch /ro/x || echo read-only; touch /rodata/x || echo read-only; touch /roram/x || echo read-only"
    )
    mounts = [
        {"Target": "/host", "Type": "hostfs"},
        {"Target": "/ro", "Type": "hostfs", "Flags": ["ro"]},
        {"Target": "/one/file", "Type": "hostfs", "Flags": ["ro"]},
        {"Target": "/data", "Type": "ext2", "Flags": ["rw"]},
        {"Target": "/rodata", "Type": "ext2", "Flags": ["ro"]},
        {"Target": "/ram", "Type": "ramfs"},
        {"Target": "/roram", "Type": "ramfs", "Flags": ["ro"]},
    ]
    path = package("--roothash", root_hash(data_image), **script(text), Mount=mounts)
    sources = {"/host": host, "/ro": host, "/one/file": host / "file", "/data": data_image, "/rodata": data_image}
    options = [f"--mount={source}={target}" for target, source in sources.items()]
    result = execute(path, image, *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "from the host\n" * 3 + "from the image\n" + "read-only\n" * 4
    assert (host / "new").exists()
    assert not (host / "x").exists()

    for index, target in enumerate(sources):
        missing = refused_run(path, *options[:index], *options[index + 1 :])
        assert f"give --mount SOURCE={target}" in missing
    for wrong, what in (
        (f"{host}=/other", "not a target that the package declares"),
        (f"{host}=/ram", "not a target that the package declares"),
        (f"{host}=/host", "given twice"),
    ):
        assert what in refused_run(path, *options, "--mount", wrong)
    for wrong in (
        f"{data_image}=/host",
        f"{host}=/data",
        f"{host}=/host,ro",
        f"{data_image}=/data,insecure",
        f"{data_image}=/data,uid=0",
    ):
        target = wrong.rpartition("=/")[2].split(",")[0]
        others = [option for option in options if not option.endswith(f"=/{target}")]
        assert wrong.split(",")[0] in refused_run(path, *others, "--mount", wrong)


def test_a_mount_has_its_own_trust(
    package: Callable[..., Path], image: Path, data_image: Path, image_keys: Keys, keys: Keys, tmp_path: Path
) -> None:
    (tmp_path / "data.roothash").write_text(root_hash(data_image) + "\n")
    shutil.copy(image_keys[0], tmp_path / "image.pem")
    shutil.copy(keys[0], tmp_path / "other.pem")

    def mounting(source: Path, **trust: str) -> subprocess.CompletedProcess[str]:
        path = package(**script("echo ran"), Mount=[{"Target": "/data", "Type": "ext2", **trust}])
        return execute(path, image, "--mount", f"{source}=/data")

    # The package's list has the root file system's root hash alone.
    assert mounting(image).stdout == "ran\n"
    assert mounting(data_image).returncode == NOT_TRUSTED
    assert mounting(data_image, RootHash=root_hash(data_image)).stdout == "ran\n"
    # Its own trust is all that counts for it.
    assert mounting(image, Roothash="data.roothash").returncode == NOT_TRUSTED
    assert mounting(image, PublicKey="image.pem").stdout == "ran\n"
    assert mounting(data_image, PublicKey="other.pem", Roothash="data.roothash").stdout == "ran\n"


def test_encrypted_images(package: Callable[..., Path], image: Path, tmp_path: Path) -> None:
    key, wrong, tree, secret = (tmp_path / name for name in ("key", "wrong", "tree", "secret.img"))
    for path in key, wrong:
        path.touch(mode=0o600)
        path.write_bytes(os.urandom(64))
    (tree / "bin").mkdir(parents=True)
    shutil.copy(run("sh", "-c", "command -v busybox").stdout.strip(), tree / "bin/cat")
    (tree / "data").write_text("secret\n")
    assert mystfuse("mkext2", "--encrypt", key, tree, secret).returncode == 0
    trust = ("--roothash", root_hash(secret))
    cat = {"ApplicationPath": "/bin/cat", "ApplicationParameters": ["/data"]}
    path = package(*trust, **cat)
    assert output(path, secret, "--key-file", key) == "secret\n"
    assert execute(path, secret, "--key-file", wrong).returncode == KEY
    assert execute(path, secret, stdin=subprocess.DEVNULL).returncode == KEY
    path = package(*trust, **script("cat /x/data"), Mount=[{"Target": "/x", "Type": "ext2"}])
    assert output(path, image, "--mount", f"{secret}=/x,keyfile={key}") == "secret\n"


# Executing the file itself


@pytest.fixture
def path_with_mystfuse(tmp_path: Path) -> str:
    """A PATH that has a ``mystfuse``."""
    directory = tmp_path / "path"
    directory.mkdir()
    (directory / "mystfuse").write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    (directory / "mystfuse").chmod(0o755)
    return f"{directory}:/usr/bin:/bin"


def test_a_package_can_be_executed(package: Callable[..., Path], image: Path, path_with_mystfuse: str) -> None:
    path = package(HostApplicationParameters=True)
    odd = path.with_name('it\'s "$0" \\n')
    path.rename(odd)
    for command, environment in (
        ([str(odd), f"--rootfs={image}", "a  b", "$c"], {}),
        ([f"./{odd.name}", "a  b", "$c"], {"MYST_ROOTFS": str(image)}),
    ):
        result = subprocess.run(
            command,
            cwd=odd.parent,
            env={**os.environ, "PATH": path_with_mystfuse, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (result.returncode, result.stdout) == (0, "a  b $c\n"), result


def test_without_mystfuse_it_says_so(package: Callable[..., Path], tmp_path: Path) -> None:
    path = package()
    for shell in ([], ["/bin/dash"], ["/bin/bash"]):
        result = subprocess.run(
            [*shell, str(path)],
            env={"PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (result.returncode, result.stdout) == (127, "")
        assert result.stderr == f"{path}: mystfuse is not in PATH: install it, or put where it is into PATH\n"


def test_an_ordinary_user_runs_a_package(
    package: Callable[..., Path], image: Path, data_image: Path, open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    mounts = [
        {"Target": "/host", "Type": "hostfs", "Flags": ["ro"]},
        {"Target": "/data", "Type": "ext2"},
        {"Target": "/ram", "Type": "ramfs", "Flags": ["ro"]},
    ]
    text = (
        'cat /data/data; touch /new /data/new && echo written; touch /host/x /ram/x || stat -c %U:%n /host; echo "$0"'
    )
    path = package(
        "--roothash",
        root_hash(data_image),
        ApplicationPath="/bin/sh",
        ApplicationParameters=["-c", text, "zero"],
        MemorySize="32m",
        Mount=mounts,
    )
    for file in path, image, data_image:
        shutil.copy(file, open_tmp_path)
    (open_tmp_path / "host").mkdir()
    (open_tmp_path / "host").chmod(0o777)
    result = run(
        *ordinary_user,
        "run",
        open_tmp_path / "package",
        f"--rootfs={open_tmp_path / image.name}",
        f"--mount={open_tmp_path}/host=/host",
        f"--mount={open_tmp_path / data_image.name}=/data",
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[:2] == ["from the image", "written"]
    assert result.stdout.splitlines()[-1] == "zero"
    assert os.listdir(open_tmp_path / "host") == []


# Names that the original's documentation uses


@pytest.mark.parametrize("alias", ["exec-sgx", "exec-linux"])
def test_exec_by_its_old_names(alias: str, image: Path) -> None:
    assert mystfuse(alias, image, "/bin/cat", "/hello").stdout == "from the root\n"
