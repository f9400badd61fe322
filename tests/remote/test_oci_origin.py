"""Images in OCI registries: docker-registry, open to all, with passwords, and with tokens."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from mystfuse.formats.oci_artifact import ARTIFACT_TYPE, CONTENT_TYPE, INDEX
from mystfuse.remote.address import parse_address
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.oci_origin import OciOrigin
from mystfuse.remote.origin import Failure, FetchError
from tests.support.fetching import failure_of_opening, fetch
from tests.support.pushing import push
from tests.support.registry_server import PASSWORD, USER, RegistryServer, registry_server

DATA = bytes(range(256)) * 4000


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry_server(tmp_path_factory.mktemp("open")) as server:
        yield server


@pytest.fixture(scope="module")
def basic_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry_server(tmp_path_factory.mktemp("basic"), "basic") as server:
        yield server


@pytest.fixture(scope="module")
def token_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry_server(tmp_path_factory.mktemp("token"), "token") as server:
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)


def origin_of(address: str, **config: Any) -> OciOrigin:
    return OciOrigin(parse_address(address), FetcherConfig((address,), **config))


async def check(address: str, digest: str = "") -> None:
    origin = origin_of(address)
    opened = await origin.open(4096)
    assert (opened.size, opened.tail) == (len(DATA), DATA[-4096:])
    assert opened.validator.startswith("sha256:")
    assert await fetch(origin, 1000, 100_000) == DATA[1000:101_000]
    await origin.aclose()


async def test_what_is_pushed_is_read(open_registry: RegistryServer) -> None:
    told = await push(f"oci://{open_registry.host}/some/app:v1", DATA)
    assert (told.pushed.how, told.pushed.bytes_sent, told.advanced) == ("sent", len(DATA), len(DATA))
    await check(f"oci://{open_registry.host}/some/app:v1")
    await check(told.pushed.address)


async def test_a_tag_that_moves_is_read_as_it_was_opened(open_registry: RegistryServer) -> None:
    address = f"oci://{open_registry.host}/moving"
    await push(address, DATA)
    origin = origin_of(address)
    await origin.open(10)
    await push(address, DATA[::-1])
    assert await fetch(origin, 5, 10) == DATA[5:15]
    await origin.aclose()


async def test_a_password(basic_registry: RegistryServer, tmp_path: Path) -> None:
    address = f"oci://{basic_registry.host}/private/app"
    error = await failure_of_opening(origin_of(address))
    assert error.failure is Failure.DENIED
    assert f"skopeo login {basic_registry.host}" in str(error)
    basic_registry.auth_file(tmp_path / "auth.json")
    await push(address, DATA)
    await check(address)
    basic_registry.auth_file(tmp_path / "auth.json", password="another")
    error = await failure_of_opening(origin_of(address))
    assert error.failure is Failure.DENIED
    assert "another" not in str(error)


async def test_tokens(token_registry: RegistryServer, tmp_path: Path) -> None:
    address = f"oci://{token_registry.host}/private/app"
    token_registry.auth_file(tmp_path / "auth.json")
    await push(address, DATA)
    await check(address)
    (tmp_path / "auth.json").unlink()
    error = await failure_of_opening(origin_of(address))
    assert error.failure is Failure.DENIED
    token_registry.auth_file(tmp_path / "auth.json", password="another")
    error = await failure_of_opening(origin_of(address))
    assert error.failure is Failure.DENIED
    assert "refuses the credentials" in str(error) and "another" not in str(error)


async def test_a_token_for_nobody(token_registry: RegistryServer, tmp_path: Path) -> None:
    token_registry.auth_file(tmp_path / "auth.json")
    await push(f"oci://{token_registry.host}/public/app", DATA)
    (tmp_path / "auth.json").unlink()
    await check(f"oci://{token_registry.host}/public/app")


async def test_an_identity_token(token_registry: RegistryServer, tmp_path: Path) -> None:
    assert token_registry.tokens is not None
    entry = {"auth": "", "identitytoken": token_registry.tokens.identity_token}
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {token_registry.host: entry}}))
    await push(f"oci://{token_registry.host}/private/other", DATA)
    await check(f"oci://{token_registry.host}/private/other")


async def test_a_token_is_renewed_before_it_expires(tmp_path: Path) -> None:
    with registry_server(tmp_path / "registry", "token", token_life=12) as server:
        assert server.tokens is not None
        server.auth_file(tmp_path / "auth.json")
        await push(f"oci://{server.host}/app", DATA)
        origin = origin_of(f"oci://{server.host}/app")
        await origin.open(10)
        before = len(server.tokens.asked)
        await fetch(origin, 0, 10)
        assert len(server.tokens.asked) == before
        await trio.sleep(11)
        async with trio.open_nursery() as nursery:
            for offset in range(5):
                nursery.start_soon(fetch, origin, offset, 10)
        assert len(server.tokens.asked) == before + 1
        server.tokens.refuses = True
        with pytest.raises(FetchError) as caught:
            await origin.renew()
        assert caught.value.failure is Failure.DENIED
        await origin.aclose()


async def test_a_credential_helper(
    basic_registry: RegistryServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    helper = tmp_path / "bin/docker-credential-test"
    answer = json.dumps({"ServerURL": basic_registry.host, "Username": USER, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\n[ $1 = get ] && [ \"$(cat)\" = {basic_registry.host} ] && echo '{answer}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text(json.dumps({"credHelpers": {basic_registry.host: "test"}}))
    await push(f"oci://{basic_registry.host}/helped", DATA)
    await check(f"oci://{basic_registry.host}/helped")
    helper.write_text("#!/bin/sh\nexit 3\n")
    error = await failure_of_opening(origin_of(f"oci://{basic_registry.host}/helped"))
    assert "docker-credential-test: exit status 3" in str(error)


async def test_what_is_not_there(open_registry: RegistryServer) -> None:
    await push(f"oci://{open_registry.host}/here", DATA)
    for address in ("here:no-such-tag", "no-such-repository", f"here@sha256:{'0' * 64}"):
        error = await failure_of_opening(origin_of(f"oci://{open_registry.host}/{address}"))
        assert error.failure is Failure.ABSENT, error
        assert "no such" in str(error)


async def test_a_container_image_is_called_so(open_registry: RegistryServer, tmp_path: Path) -> None:
    _push_manifest(open_registry, "container", {"config": _blob(open_registry, "container", b'{"config":{}}')})
    error = await failure_of_opening(origin_of(f"oci://{open_registry.host}/container"))
    assert error.failure is Failure.UNUSABLE
    assert "a container image" in str(error)
    assert f"skopeo copy docker://{open_registry.host}/container:latest oci:DIR:TAG" in str(error)


async def test_an_index_leads_to_our_image(open_registry: RegistryServer) -> None:
    pushed = (await push(f"oci://{open_registry.host}/indexed:one", DATA)).pushed
    ours = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": pushed.manifest, "size": 1}
    with urllib.request.urlopen(
        urllib.request.Request(
            f"http://{open_registry.host}/v2/indexed/manifests/one", headers={"Accept": ours["mediaType"]}
        )
    ) as answer:
        ours["size"] = len(answer.read())
    _put(open_registry, "indexed", "all", {"manifests": [{**ours, "artifactType": ARTIFACT_TYPE}, ours]}, INDEX)
    await check(f"oci://{open_registry.host}/indexed:all")
    _put(open_registry, "indexed", "none", {"manifests": [{**ours, "platform": {}}]}, INDEX)
    error = await failure_of_opening(origin_of(f"oci://{open_registry.host}/indexed:none"))
    assert "none of which is an image of mystfuse" in str(error)


def test_skopeo_reads_the_manifest(open_registry: RegistryServer) -> None:
    told = trio.run(lambda: push(f"oci://{open_registry.host}/inspected:v2", DATA, None, {"org.example": "yes"}))
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{open_registry.host}/inspected:v2"]
    document = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert document["artifactType"] == ARTIFACT_TYPE
    assert [layer["mediaType"] for layer in document["layers"]] == [CONTENT_TYPE]
    assert document["annotations"] == {"org.mystfuse.size": str(len(DATA)), "org.example": "yes"}
    assert told.pushed.manifest is not None and told.pushed.address.endswith(told.pushed.manifest)


def _blob(server: RegistryServer, repository: str, data: bytes) -> dict[str, Any]:
    import hashlib

    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    begin = urllib.request.Request(f"http://{server.host}/v2/{repository}/blobs/uploads/", method="POST")
    with urllib.request.urlopen(begin) as answer:
        location = answer.headers["Location"]
    urllib.request.urlopen(
        urllib.request.Request(
            f"{location}&digest={digest}", data, {"Content-Type": "application/octet-stream"}, method="PUT"
        )
    ).close()
    return {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": len(data)}


def _push_manifest(server: RegistryServer, repository: str, parts: dict[str, Any]) -> None:
    _put(server, repository, "latest", {"layers": [], **parts}, "application/vnd.oci.image.manifest.v1+json")


def _put(server: RegistryServer, repository: str, tag: str, parts: dict[str, Any], kind: str) -> None:
    body = json.dumps({"schemaVersion": 2, "mediaType": kind, **parts}).encode()
    url = f"http://{server.host}/v2/{repository}/manifests/{tag}"
    urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": kind}, method="PUT")).close()
