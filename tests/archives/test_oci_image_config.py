"""The configuration of an OCI image, from what a file says and options change; and the names of images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.archives.json_object import parse_object
from mystfuse.archives.oci_image_config import (
    ConfigChanges,
    ImageConfig,
    elf_architecture,
    own_architecture,
    rfc3339,
)
from mystfuse.archives.oci_layer import COMPRESSIONS, LayerStream
from mystfuse.archives.oci_reference import Reference, parse_reference
from mystfuse.errors import FormatError, UsageError


def made(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    config = ImageConfig(document, "config.json")
    config.change(ConfigChanges(**changes))
    result: dict[str, Any] = json.loads(config.to_bytes("amd64", 0, "sha256:0"))
    return result


PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def test_without_anything() -> None:
    assert made({}) == {
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Env": [PATH]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:0"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "mystfuse oci"}],
    }


def test_a_whole_document_keeps_all_but_its_layers() -> None:
    program = {
        "User": "app", "Env": ["PATH=/bin", "A=1=2", "EMPTY="], "Entrypoint": ["/e"], "Cmd": ["c"], "WorkingDir": "/w",
        "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}}, "StopSignal": "SIGINT",
        "Healthcheck": {"Test": ["CMD", "x"], "Interval": 30}, "OnBuild": None,
    }  # fmt: skip
    document = {
        "architecture": "arm64", "variant": "v8", "os": "linux", "author": "me", "created": "2020-01-01T00:00:00Z",
        "config": program, "rootfs": {"type": "layers", "diff_ids": ["sha256:1", "sha256:2"]}, "history": [{}, {}],
    }  # fmt: skip
    result = made(document)
    del program["OnBuild"]
    assert result["config"] == program
    assert (result["architecture"], result["variant"], result["author"]) == ("arm64", "v8", "me")
    assert result["rootfs"]["diff_ids"] == ["sha256:0"] and len(result["history"]) == 1
    assert made(program)["config"] == program


def test_what_options_change() -> None:
    document = {"Entrypoint": ["/old"], "Cmd": ["old"], "Env": ["A=1", "B=2"], "Labels": {"a": "1", "b": "2"}}
    config = made(document, environment={"A": "3", "C": "4"}, labels={"b": "3"}, user="1:2", directory="/d")["config"]
    assert config == {
        "Entrypoint": ["/old"], "Cmd": ["old"], "Env": ["A=3", "B=2", "C=4", PATH], "Labels": {"a": "1", "b": "3"},
        "User": "1:2", "WorkingDir": "/d",
    }  # fmt: skip
    # The arguments were those of the old program.
    config = made(document, entrypoint=["/new"])["config"]
    assert config["Entrypoint"] == ["/new"] and "Cmd" not in config
    assert made(document, entrypoint=["/new"], cmd=["x"])["config"]["Cmd"] == ["x"]
    assert made(document, cmd=[])["config"]["Entrypoint"] == ["/old"]
    assert "Cmd" not in made(document, cmd=[])["config"] and "User" not in made({"User": "x"}, user="")["config"]
    other = made({"architecture": "arm", "variant": "v7", "config": None}, architecture="riscv64")
    assert other["architecture"] == "riscv64" and "variant" not in other


@pytest.mark.parametrize(
    "document",
    [
        {"config": []}, {"config": 1}, {"Env": "PATH=/bin"}, {"Env": [1]}, {"Cmd": "sh"}, {"Entrypoint": {}},
        {"Labels": ["a"]}, {"Labels": {"a": 1}}, {"User": 0}, {"WorkingDir": ["/"]}, {"Volumes": {"/v": 1}},
        {"ExposedPorts": [80]}, {"StopSignal": 9}, {"architecture": 64}, {"architecture": "amd64", "os": ["linux"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_type_is_an_error(document: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=r"config\.json: "):
        ImageConfig(document, "config.json")


texts = st.text(max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from(["config", "Env", "Cmd", "Entrypoint", "Labels", "User", "os", "variant", "Volumes", "x"])


@given(st.dictionaries(fields, json_values, max_size=4))
def test_no_document_is_more_than_refused(document: dict[str, Any]) -> None:
    try:
        result = made(document, cmd=["x"])
    except FormatError:
        return
    assert result["config"]["Cmd"] == ["x"] and all(isinstance(text, str) for text in result["config"]["Env"])


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_are_more_than_refused(data: bytes) -> None:
    try:
        assert isinstance(parse_object(data, "name"), dict)
    except FormatError as error:
        assert str(error).startswith("name: ")


def test_times() -> None:
    assert rfc3339(1_700_000_000) == "2023-11-14T22:13:20Z"
    assert rfc3339(-5) == "1970-01-01T00:00:00Z" and rfc3339(2**60) == "9999-12-31T23:59:59Z"


def test_architectures() -> None:
    assert elf_architecture(Path(sys.executable).read_bytes()[:20]) == own_architecture()
    assert elf_architecture(b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\xb7\0") == "arm64"
    assert elf_architecture(b"\x7fELF\2\2\1" + bytes(9) + b"\0\2\0\x16") == "s390x"
    for header in (b"", b"#!/bin/sh\n" + bytes(20), b"\x7fELF", b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\xff\xff"):
        assert elf_architecture(header) is None


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("oci:dir:tag", Reference("oci", "dir", "tag")),
        ("oci:/a/b", Reference("oci", "/a/b", None)),
        ("oci-archive:f.tar:v1.0-rc1", Reference("oci-archive", "f.tar", "v1.0-rc1")),
        ("oci:d:example.org/app:1.0@x", Reference("oci", "d", "example.org/app:1.0@x")),
    ],
)
def test_names_of_images(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference and str(reference) == text


@pytest.mark.parametrize(
    "text",
    ["", "oci", "oci:", "dir:tag", "docker:x", "oci:dir:", "oci:dir:a b", "oci:dir:-a", "oci:dir:a..b", "oci::tag",
     "oci:dir:a/", "oci:dir:é", "oci://host/a", "oci://host:5000/a:b", f"oci:dir:{'a' * 256}", "oci:dir:a\n"],
)  # fmt: skip
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)


@pytest.mark.parametrize(("compression", "level"), [("gzip", 0), ("gzip", 10), ("none", 1), ("zstd", 20), ("zstd", 0)])
def test_levels_that_are_none(compression: str, level: int) -> None:
    assert compression in COMPRESSIONS
    with pytest.raises(UsageError, match=f"--level {level}"):
        LayerStream(bytearray().extend, compression, level)
