"""What ``ls``, ``verify`` and ``status`` print as JSON is what their schemas say, for images of every kind: each value
that a field can have, null above all, occurs."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError

import mystfuse as api
from tests.support.cli_in_process import in_process
from tests.support.commands import GROUP, USER, run
from tests.support.encrypted_images import write_secret
from tests.support.ext2_editor import Editor, make_image
from tests.support.json_documents import SCHEMAS, check_document
from tests.support.mounts import HAS_FAST_PATH, clear_mount, mounted, status_of

MakeKeys = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_secret(tmp_path_factory.mktemp("key") / "key", secrets.token_bytes(64))


@pytest.fixture(scope="module")
def kinds(
    small_image: Path, small_tree: Path, key: Path, make_keys: MakeKeys, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, list[str]]]:
    """Images by kind, each with the options that open it."""
    directory = tmp_path_factory.mktemp("kinds")
    public, private = make_keys("json")

    def made(name: str, *options: str) -> Path:
        api.make_image(small_tree, directory / name, options=options)
        return directory / name

    bare = make_image(directory / "bare", size="8M", tree=small_tree)
    veritied = make_image(directory / "veritied", size="8M", tree=small_tree)
    size = veritied.stat().st_size
    said = run("veritysetup", "format", "--hash=sha512", f"--hash-offset={size}", veritied, veritied).stdout
    (root_hash,) = re.findall(r"Root hash:\s+(\w+)", said)
    own_hash = in_process("fssig", "--roothash", small_image).stdout.strip()
    return {
        "self": (small_image, []),
        "root hash": (small_image, [f"--roothash={own_hash}"]),
        "insecure": (small_image, ["--insecure"]),
        "signed": (made("signed", f"--sign={public}:{private}"), [f"--pubkey={public}"]),
        "luks1": (made("luks1", f"--encrypt={key}"), [f"--key-file={key}"]),
        "luks2": (made("luks2", f"--encrypt={key}", "--luks2"), [f"--key-file={key}"]),
        "sha512": (veritied, [f"--hash-offset={size}", f"--roothash={root_hash}"]),
        "bare": (bare, ["--insecure"]),
    }


def values(documents: Iterable[dict[str, Any]], field: str) -> set[Any]:
    """All that a field is, numbers and strings by their type."""
    found = {document.get(field) for document in documents}
    return {value if value is None or isinstance(value, bool) else type(value) for value in found}


def words(name: str, field: str) -> set[Any]:
    """The words that a schema allows."""
    return set(json.loads((SCHEMAS / f"{name}.json").read_text())["properties"][field]["enum"])


@pytest.mark.logs(r"^mystfuse\.image\.open")
def test_verify(kinds: dict[str, tuple[Path, list[str]]], tmp_path: Path) -> None:
    documents = []

    def verify(image: Path, *options: str) -> dict[str, Any]:
        result = in_process("verify", "--json", *options, image)
        document: dict[str, Any] = json.loads(result.stdout)
        check_document("verify", document)
        documents.append(document)
        status = 0 if document["ok"] else 4
        refused = 3 if "--no-trust-self" in options and document["trust"] == "self" else status
        assert result.returncode == refused, result.stderr
        return document

    for kind, (image, options) in kinds.items():
        if kind == "bare":
            assert in_process("verify", "--json", *options, image).stdout == ""
            continue
        document = verify(image, *options)
        assert document["ok"] and document["key_opens"] is (True if kind.startswith("luks") else None)
    image, options = kinds["signed"]
    assert verify(image)["trust"] == "self" == verify(image, "--no-trust-self")["trust"]
    data = bytearray(image.read_bytes())
    hash_offset = json.loads(in_process("fssig", "--json", image).stdout)["hash_offset"]
    for position in (5000, hash_offset + 8192):
        damaged = tmp_path / "damaged"
        data[position] ^= 1
        damaged.write_bytes(data)
        verify(damaged, *options)
    encrypted, with_key = kinds["luks1"]
    damaged.write_bytes(encrypted.read_bytes()[:5000] + b"x" + encrypted.read_bytes()[5001:])
    assert verify(damaged, *with_key)["key_opens"] is None
    assert {document["trust"] for document in documents} == words("verify", "trust")
    assert values(documents, "key_opens") == {True, None}
    assert {len(document["root_hash"]) for document in documents} == {64, 128}
    found = {bad["what"] for document in documents for bad in document["bad_ranges"]}
    assert {"data", "hash tree level 0", "data under a bad hash block"} <= found


def test_status(kinds: dict[str, tuple[Path, list[str]]], mountpoint: Path, tmp_path: Path) -> None:
    documents = []
    for kind, (image, options) in kinds.items():
        with mounted(image, mountpoint, *options, *(["-r"] if kind == "self" else [])):
            if kind == "signed":
                # It is counted, and so is an open file without a name.
                with (mountpoint / "new").open("w") as file:
                    os.unlink(mountpoint / "new")
                    file.write("x" * 10_000)
                    file.flush()
                    documents.append(status_of(mountpoint))
                assert documents[-1]["unlinked_inodes"] == 1 and documents[-1]["overlay_used"] > 0
            document = json.loads(in_process("status", "--json", mountpoint).stdout)
            assert document["pid"] == status_of(mountpoint)["pid"]
            documents.append(document)
    (tmp_path / "store").mkdir()
    store = f"--overlay-store={tmp_path / 'store'}"
    with mounted(kinds["self"][0], mountpoint, "-o", "nofastpath", store):
        documents.append(status_of(mountpoint))
    with api.mount(kinds["self"][0], mountpoint, trust="self") as mount:
        documents.append(mount.status())
    for document in documents:
        check_document("status", document)
    assert {document["trust"] for document in documents} == words("status", "trust")
    assert {document["luks_version"] for document in documents} == words("status", "luks_version")
    for field in ("root_hash", "signer", "cipher"):
        assert values(documents, field) == {str, None}, field
    assert values(documents, "read_only") == {True, False}
    assert values(documents, "fastpath") == ({True, False} if HAS_FAST_PATH else {False})
    assert {len(document["root_hash"]) for document in documents if document["root_hash"]} == {64, 128}
    assert values(documents, "own_user") == {int}


def test_status_of_an_ordinary_users_mount(small_image: Path, open_tmp_path: Path, ordinary_user: list[str]) -> None:
    image, mountpoint = open_tmp_path / "image", open_tmp_path / "mount"
    image.write_bytes(small_image.read_bytes())
    mountpoint.mkdir()
    os.chown(mountpoint, USER, GROUP)
    try:
        run(*ordinary_user, image, mountpoint, cwd=open_tmp_path)
        document = json.loads(run(*ordinary_user, "status", "--json", mountpoint, cwd=open_tmp_path).stdout)
    finally:
        clear_mount(mountpoint)
    check_document("status", document)
    assert (document["own_user"], document["empty_root"]) == (None, False)


@pytest.mark.logs(r"^mystfuse\.image\.open")
def test_ls(kinds: dict[str, tuple[Path, list[str]]], tmp_path: Path) -> None:
    for image, options in kinds.values():
        document = json.loads(in_process("ls", "-Ra", "--json", *options, image).stdout)
        check_document("ls", document)
        assert {"/sub/deep/data.bin", "/latin-\udce9"} <= {item["path"] for item in document}
    for path in ("/hello.txt", "/link", "/lost+found"):
        check_document("ls", json.loads(in_process("ls", "--json", kinds["self"][0], path).stdout))
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "fifo")
    os.mknod(source / "socket", 0o140700)
    os.mknod(source / "null", 0o020666, os.makedev(1, 3))
    os.mknod(source / "disk", 0o060660, os.makedev(259, 70000))
    (source / "link").symlink_to("fifo")
    (source / "old").touch()
    os.utime(source / "old", (-5, -5))
    (source / "bad").write_text("bad")
    editor = Editor(make_image(tmp_path / "image", tree=source).read_bytes())
    _, bad = editor.find(2, b"bad")
    editor.put("<H", editor.inode(bad), 0)
    (tmp_path / "image").write_bytes(editor.data)
    result = in_process("ls", "--json", "--insecure", tmp_path / "image")
    assert result.returncode == 6
    document = json.loads(result.stdout)
    check_document("ls", document)
    schema = json.loads((SCHEMAS / "ls.json").read_text())
    assert {item["type"] for item in document} | {"file"} == set(schema["items"]["properties"]["type"]["enum"])


def test_the_schemas_refuse_what_is_not_so(kinds: dict[str, tuple[Path, list[str]]]) -> None:
    """A check that passes everything would be none."""
    (item,) = json.loads(in_process("ls", "-l", "--json", kinds["self"][0], "/link").stdout)
    for change in ({"target": None}, {"type": "file"}, {"mode": 511}, {"more": 1}, {"type": None}):
        with pytest.raises(ValidationError):
            check_document("ls", [{**item, **change}])
    image, options = kinds["signed"]
    document = json.loads(in_process("verify", "--json", *options, image).stdout)
    for change in ({"ok": False}, {"trust": "hope"}, {"root_hash": None}, {"bad_ranges_count": 1}):
        with pytest.raises(ValidationError):
            check_document("verify", {**document, **change})


def test_each_schema_has_a_row_and_each_row_a_schema() -> None:
    listed = re.findall(r"\]\(schemas/([\w-]+\.json)\)", (SCHEMAS.parent / "json.md").read_text())
    assert sorted(set(listed)) == sorted(path.name for path in SCHEMAS.glob("*.json"))
    for name in listed:
        assert json.loads((SCHEMAS / name).read_text())["description"]
