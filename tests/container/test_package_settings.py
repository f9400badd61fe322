"""Settings of a package: we refuse a bad one by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mystfuse.formats.configuration import Configuration
from tests.support.cli_in_process import in_process
from tests.support.packages import USAGE, Keys


@pytest.fixture
def refused(tmp_path: Path, keys: Keys) -> Callable[[Any], str]:
    """Makes a package of a configuration that must be refused; returns the line that says why."""

    def refuse(settings: Any) -> str:
        config = tmp_path / "config.json"
        config.write_text(settings if isinstance(settings, str) else json.dumps(settings))
        result = in_process("package", "--roothash", "00" * 32, "-o", tmp_path / "never", keys[1], config)
        assert (result.returncode, result.stdout) == (USAGE, "")
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "never").exists()
        return result.stderr

    return refuse


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
    assert "config.json: an empty file, not settings in JSON" in refused("")
    for text in "[]", "{", "NaN", '{"Debug": Infinity}', "[" * 100_000, '{"a":' + "9" * 5000 + "}":
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
