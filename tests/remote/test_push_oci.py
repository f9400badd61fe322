"""Pushes to registries: what is sent, what is not sent again, and what happens when they break off."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from mystfuse.remote import push_oci
from mystfuse.remote.origin import Failure, FetchError
from tests.support.pushing import push
from tests.support.registry_server import RegistryServer, registry_server
from tests.support.small_registry import SmallRegistry, small_registry

DATA = random.Random(1).randbytes(5_000_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry_server(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def small() -> Iterator[SmallRegistry]:
    with small_registry() as registry:
        yield registry


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    monkeypatch.setattr(push_oci, "_FIRST_PAUSE", 0.01)


def patches(small: SmallRegistry) -> list[str]:
    return [headers["Content-Range"] for method, _, headers in small.requests if method == "PATCH"]


async def test_what_is_there_is_not_sent_again(server: RegistryServer) -> None:
    await push(f"oci://{server.host}/twice:one", DATA)
    before = len(server.requests("PATCH"))
    told = await push(f"oci://{server.host}/twice:two", DATA)
    assert (told.pushed.how, told.pushed.bytes_sent, told.advanced) == ("present", 0, len(DATA))
    assert len(server.requests("PATCH")) == before


async def test_the_registry_takes_it_from_another_repository(server: RegistryServer) -> None:
    await push(f"oci://{server.host}/first/here", DATA)
    before = len(server.requests("PATCH"))
    told = await push(f"oci://{server.host}/then/there", DATA, mount_from="first/here")
    assert (told.pushed.how, told.pushed.bytes_sent) == ("mounted", 0)
    # The configuration of two bytes alone.
    assert len(server.requests("PATCH")) == before + 1
    told = await push(f"oci://{server.host}/not/there", DATA, mount_from="no/such/repository")
    assert told.pushed.how == "sent"


async def test_a_cross_mount_with_tokens(tmp_path: Path) -> None:
    with registry_server(tmp_path / "registry", "token") as server:
        server.auth_file(tmp_path / "auth.json")
        await push(f"oci://{server.host}/first/here", DATA)
        told = await push(f"oci://{server.host}/then/there", DATA, mount_from="first/here")
        assert told.pushed.how == "mounted"


async def test_an_upload_that_breaks_off_goes_on_where_it_was(small: SmallRegistry) -> None:
    small.break_after = [1_000_000, 2_500_000]
    told = await push(f"oci://{small.host}/app", DATA)
    assert (told.pushed.how, told.advanced) == ("resumed", len(DATA))
    assert told.pushed.bytes_sent == len(DATA)
    assert DATA in small.blobs.values()
    assert patches(small)[:3] == ["0-4999999", "1000000-4999999", "3500000-4999999"]
    assert len(told.notes) == 2


async def test_a_registry_that_forgets_uploads_gets_all_of_it_in_chunks(
    small: SmallRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_oci, "_CHUNK", 2_000_000)
    small.break_after, small.forget = [3_000_000], True
    told = await push(f"oci://{small.host}/app", DATA)
    assert told.pushed.how == "sent"
    assert DATA in small.blobs.values()
    assert patches(small)[:4] == ["0-4999999", "0-1999999", "2000000-3999999", "4000000-4999999"]


async def test_a_busy_registry_is_asked_again(small: SmallRegistry) -> None:
    small.refuse = [503, 500, 429]
    told = await push(f"oci://{small.host}/app", DATA)
    assert DATA in small.blobs.values()
    assert len(told.notes) == 3


async def test_a_link_that_always_breaks_ends_the_push(small: SmallRegistry) -> None:
    small.break_after, small.forget = [1_000] * 100, True
    with pytest.raises(FetchError) as caught:
        await push(f"oci://{small.host}/app", DATA)
    assert caught.value.failure is Failure.UNREACHABLE
    assert len(patches(small)) < 10


async def test_an_upload_that_is_refused_is_not_repeated(small: SmallRegistry) -> None:
    small.refuse = [400]
    with pytest.raises(FetchError) as caught:
        await push(f"oci://{small.host}/app", DATA)
    assert caught.value.failure is Failure.UNUSABLE
    assert len(patches(small)) == 1


@pytest.mark.parametrize(
    "location", ["ftp://host/x", "file:///etc/passwd", "http://127.0.0.1:99999/x", "http:", "//", "http://\x7f/"]
)
async def test_uploads_that_lead_astray(small: SmallRegistry, location: str) -> None:
    small.location = location
    with pytest.raises(FetchError) as caught:
        await push(f"oci://{small.host}/app", DATA)
    assert caught.value.failure in (Failure.UNUSABLE, Failure.UNREACHABLE, Failure.REPLACED)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lie", ["0-0", "0-9", "0-9999999999", "0-" + "9" * 19])
async def test_a_registry_that_lies_about_what_it_has(small: SmallRegistry, lie: str) -> None:
    small.lies = lie
    with pytest.raises(FetchError) as caught:
        await push(f"oci://{small.host}/app", DATA)
    assert caught.value.failure is Failure.REPLACED
    assert len(patches(small)) < 20


async def test_a_blob_that_is_elsewhere_is_there(small: SmallRegistry) -> None:
    await push(f"oci://{small.host}/app", DATA)
    small.lead_to = "http://127.0.0.1:9"
    assert (await push(f"oci://{small.host}/app", DATA)).pushed.how == "present"


async def test_a_registry_that_never_answers(small: SmallRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_oci, "_LONGEST_ANSWER", 0.2)
    small.is_silent = True
    try:
        with pytest.raises(FetchError, match="no answer within") as caught:
            await push(f"oci://{small.host}/app", DATA)
        assert caught.value.failure is Failure.UNREACHABLE
    finally:
        small.is_silent = False


async def test_docker_registry_gets_all_of_it_again(server: RegistryServer) -> None:
    """Its state of an upload does not survive a connection that breaks within a request; the push does."""
    import trio

    from tests.support.pushing import Bytes

    class Breaking(Bytes):
        def read(self, offset: int, length: int) -> bytes:
            if offset >= 3 << 20 and not broken:
                broken.append(offset)
                raise FetchError(Failure.UNREACHABLE, "as if the link had broken")
            return super().read(offset, length)

    broken: list[int] = []
    with trio.fail_after(120):
        told = await push(f"oci://{server.host}/broken", DATA, file=Breaking(DATA))
    assert broken and told.pushed.how == "sent"
    told = await push(f"oci://{server.host}/broken", DATA)
    assert told.pushed.how == "present"
