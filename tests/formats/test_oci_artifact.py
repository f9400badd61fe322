"""The OCI artifact that is an image."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import FormatError
from mystfuse.formats.fssig import Fssig
from mystfuse.formats.oci_artifact import (
    ARTIFACT_TYPE,
    CONTENT_TYPE,
    MAX_MANIFEST,
    ArtifactIndex,
    Blob,
    NotAnArtifact,
    digest_matches,
    digest_of,
    make_artifact,
    parse_artifact,
)

BLOB = Blob(digest_of(b"image"), 5)
FSSIG = Fssig(4096, bytes(range(32)), bytes(range(32, 64)), b"signature")
DOCUMENT = json.loads(make_artifact(BLOB, "app.img", FSSIG))


def parse(**changes: Any) -> Blob | ArtifactIndex:
    return parse_artifact(json.dumps({**DOCUMENT, **changes}).encode())


def test_what_is_made_is_parsed() -> None:
    assert parse_artifact(make_artifact(BLOB, "app.img", FSSIG)) == BLOB
    assert DOCUMENT["annotations"] == {
        "org.mystfuse.size": "5",
        "org.mystfuse.root-hash": bytes(range(32)).hex(),
        "org.mystfuse.signer": bytes(range(32, 64)).hex(),
    }
    assert digest_matches(DOCUMENT["config"]["digest"], b"{}")
    assert DOCUMENT["layers"][0]["annotations"] == {"org.opencontainers.image.title": "app.img"}


def test_the_same_image_is_the_same_manifest() -> None:
    made = [make_artifact(BLOB, "ä.img", None, {"b": "1", "a": "2"}) for _ in range(2)]
    assert made[0] == made[1]
    assert "org.mystfuse.root-hash" not in json.loads(made[0])["annotations"]


def test_artifacts_of_other_tools() -> None:
    """The type in the configuration, as before version 1.1; or the type of the layer alone."""
    assert parse(artifactType=None, config={"mediaType": ARTIFACT_TYPE}) == BLOB
    assert parse(artifactType="application/vnd.unknown.artifact.v1") == BLOB


def test_an_index() -> None:
    ours = {"mediaType": "x", "digest": BLOB.digest, "size": 5, "artifactType": ARTIFACT_TYPE}
    other = {"mediaType": "x", "digest": BLOB.digest, "size": 5, "platform": {"os": "linux"}}
    index = json.dumps({"manifests": [other, ours]}).encode()
    assert parse_artifact(index) == ArtifactIndex((BLOB.digest,))
    with pytest.raises(NotAnArtifact, match="none of which") as caught:
        parse_artifact(json.dumps({"manifests": [other]}).encode())
    assert caught.value.is_container_image


@pytest.mark.parametrize(
    "config", ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"]
)
def test_a_container_image(config: str) -> None:
    layer = {**DOCUMENT["layers"][0], "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}
    with pytest.raises(NotAnArtifact, match="a container image") as caught:
        parse(artifactType=None, config={"mediaType": config}, layers=[layer])
    assert caught.value.is_container_image


def test_another_artifact() -> None:
    with pytest.raises(NotAnArtifact, match="of type 'application/vnd") as caught:
        parse(artifactType="application/vnd.cncf.helm.config.v1+json", layers=[])
    assert not caught.value.is_container_image


@pytest.mark.parametrize(
    "layer",
    [
        {"digest": "sha256:00"},
        {"digest": 5},
        {"digest": "md5:" + "0" * 32},
        {"size": -1},
        {"size": 1 << 62},
        {"size": "5"},
        {"size": True},
        {"size": 5.0},
        {"mediaType": "text/plain"},
    ],
)
def test_impossible_layers(layer: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        parse(layers=[{**DOCUMENT["layers"][0], **layer}])


def test_other_numbers_of_layers() -> None:
    for layers in ([], DOCUMENT["layers"] * 2, None, [5]):
        with pytest.raises(FormatError):
            parse(layers=layers)
    with pytest.raises(FormatError, match="more than"):
        parse_artifact(b" " * (MAX_MANIFEST + 1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.sampled_from([CONTENT_TYPE, ARTIFACT_TYPE]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["layers", "config", "mediaType", "artifactType", "digest", "size", "manifests"]), inner
    ),
)  # fmt: skip


@given(json_values.map(json.dumps).map(str.encode) | st.binary(max_size=50))
def test_anything_is_parsed_or_refused(data: bytes) -> None:
    try:
        parse_artifact(data)
    except FormatError as error:
        assert len(str(error)) < 300
