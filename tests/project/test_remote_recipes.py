"""What docs/remote.md says about registries and S3 works as it stands, with servers in the place of the examples'; and
the manifest in docs/formats.md is what a push makes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mystfuse.formats.fssig import Fssig
from mystfuse.formats.oci_artifact import Blob, digest_of, make_artifact
from tests.project.test_documents import PROJECT, run_as_typed
from tests.project.test_jobs import sections_of
from tests.support.registry_server import registry_server
from tests.support.s3_server import s3_server

PAGE = "docs/remote.md"


def script_of_section(heading: str) -> str:
    """The commands of a section, behind those that make the image."""
    sections = sections_of(PAGE)
    text = sections["Push"] + sections[heading]
    return "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def run(script: str, is_root: bool, directory: Path, ordinary_user: list[str], prepare: str = "") -> str:
    result = run_as_typed(script, is_root, directory, ordinary_user, prepare=prepare)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


@pytest.mark.parametrize("is_root", [True, False], ids=["root", "user"])
def test_registries(is_root: bool, open_tmp_path: Path, tmp_path: Path, ordinary_user: list[str]) -> None:
    with registry_server(tmp_path / "registry") as server:
        script = script_of_section("Registries").replace("registry.example", server.host)
        # For skopeo.
        prepare = (
            "mkdir -p /etc/containers/registries.conf.d; printf '[[registry]]\\nlocation = \""
            f"{server.host}\"\\ninsecure = true\\n' > /etc/containers/registries.conf.d/test.conf\n"
        )
        said = run(script, is_root, open_tmp_path, ordinary_user, prepare)
    assert said.count("hello\n") == 2
    assert "pushed: app.img" in said and "mounted from another repository: app.img" in said
    assert '"org.mystfuse.root-hash": "' in said and "a container image, it says\n" in said


@pytest.mark.parametrize("is_root", [True, False], ids=["root", "user"])
def test_s3(is_root: bool, open_tmp_path: Path, ordinary_user: list[str]) -> None:
    with s3_server() as server:
        server.client().create_bucket(Bucket="bucket")
        variables = "".join(f"export {name}={value}\n" for name, value in server.environment.items())
        said = run(variables + script_of_section("S3"), is_root, open_tmp_path, ordinary_user)
    assert said.count("hello\n") == 2
    assert "pushed: app.img" in said


def test_the_manifest_of_the_documents() -> None:
    text = (PROJECT / "docs/formats.md").read_text()
    (shown,) = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    fssig = Fssig(4096, bytes(range(32)), bytes(range(32, 64)), b"signature")
    assert json.loads(shown) == json.loads(make_artifact(Blob(digest_of(b"image"), 5), "app.img", fssig))
