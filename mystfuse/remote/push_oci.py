"""Pushing an image to an OCI registry: its blob, unless it is there, then the manifest.

Source: the OCI distribution specification 1.1, "Pushing a blob in chunks", "Mounting a blob", "Pushing Manifests".

The blob goes in one PATCH, which every registry takes. Where that breaks off, the registry is asked how much it has,
and gets the rest. One that does not go on with an upload that broke off (that of the
Distribution project, 2.8, if it did so within a request) gets all of it again, in chunks, between which it does go on.
Nothing about an upload is kept when the command ends.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote

import httpx2
import trio

from mystfuse.formats.oci_artifact import EMPTY_DATA, MANIFEST, Blob, digest_of
from mystfuse.remote.oci_address import OciReference
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.pushed import Pushed, PushedFile
from mystfuse.remote.registry import REDIRECTS, Answer, Registry
from mystfuse.system.threads import call_in_thread

_PASSING = (Failure.UNREACHABLE, Failure.BUSY, Failure.REPLACED)
"""What may not happen another time."""
_CHUNK = 64 << 20
"""Bytes of a request to a registry that has let an upload break off."""
_PIECE = 1 << 20
"""Bytes that are read and sent at a time."""
_MAX_FAILURES = 8
"""In a row."""
_FIRST_FAILURES = 3
"""The same, while the registry has never answered: its name may be wrong."""
_MAX_RESTARTS = 4
"""Uploads that are begun anew."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds between attempts."""

_LONGEST_ANSWER = 120.0
"""Seconds for a short question."""
_PATIENCE = 600.0
"""Seconds in which a registry must have put away what it has got."""

Advance = Callable[[int], None]


def blob_of(file: PushedFile, advance: Advance) -> Blob:
    """Digest and size of a file. Raises ImageReadError."""
    digest = hashlib.sha256()
    for offset in range(0, file.size, _PIECE):
        data = file.read(offset, min(_PIECE, file.size - offset))
        digest.update(data)
        advance(len(data))
    return Blob(f"sha256:{digest.hexdigest()}", file.size)


def scopes_of(reference: OciReference, mount_from: str | None) -> list[str]:
    """What a token must allow for a push."""
    wanted = [f"repository:{reference.repository}:pull,push"]
    return [*wanted, f"repository:{mount_from}:pull"] if mount_from else wanted


@dataclass
class OciPush:
    """One push.

    Args:
        registry: the repository, for ``scopes_of``.
        mount_from: a repository of the same registry that may have the blob.
        advance: called with the number of bytes that have been sent.
        note: called with a line when something is tried again.
    """

    registry: Registry
    mount_from: str | None
    advance: Advance
    note: Callable[[str], None]
    _sent: int = field(default=0, init=False)
    _has_answered: bool = field(default=False, init=False)

    async def push(self, file: PushedFile, blob: Blob, manifest: bytes) -> Pushed:
        """Push it.

        Raises:
            FetchError: the registry refuses it, or does not answer, in spite of repetition.
            ImageReadError: the file cannot be read.
        """
        how = await self._push_blob(blob, file)
        self.advance(max(0, blob.size - self._sent))
        await self._push_blob(Blob(digest_of(EMPTY_DATA), len(EMPTY_DATA)), None)
        digest = digest_of(manifest)
        reference = self.registry.reference
        answer = await self._repeated(
            lambda: self.registry.send(
                "PUT", self.registry.url(f"manifests/{reference.reference}"), {"Content-Type": MANIFEST}, manifest
            )
        )
        if answer.status != 201:
            raise self._failure(answer, "no such repository")
        return Pushed(f"{reference.base_name}@{digest}", how, self._sent, digest)

    async def _push_blob(self, blob: Blob, file: PushedFile | None) -> str:
        """Push one blob, the file or the empty object; returns how it came there."""
        if await self._has(blob):
            return "present"
        answer = await self._repeated(lambda: self._begin(blob, self.mount_from if file else None))
        if answer.status == 201:
            return "mounted"
        location, offset, chunk, how = self._location(answer), 0, blob.size, "sent"
        failures = restarts = 0
        while True:
            try:
                while offset < blob.size:
                    location, offset = await self._send(location, file, offset, min(offset + chunk, blob.size))
                    failures = 0
                await self._finish(location, blob)
                return how
            except FetchError as error:
                failures += 1
                if error.failure not in _PASSING or failures > _MAX_FAILURES or restarts > _MAX_RESTARTS:
                    raise
                await self._pause(error, failures)
            if await self._has(blob):
                # The answer to the last request was lost.
                return how
            location, offset = await self._resume(location, blob)
            if offset:
                how = "resumed"
            else:
                restarts, chunk, how = restarts + 1, _CHUNK, "sent"

    async def _has(self, blob: Blob) -> bool:
        answer = await self._repeated(lambda: self.registry.send("HEAD", self.registry.url(f"blobs/{blob.digest}")))
        if answer.status in (200, 404) or answer.status in REDIRECTS:
            # Who leads elsewhere knows where it is.
            return answer.status != 404
        raise self._failure(answer, "no such repository")

    async def _begin(self, blob: Blob, mount_from: str | None) -> Answer:
        url = httpx2.URL(self.registry.url("blobs/uploads/"))
        if mount_from:
            url = url.copy_merge_params({"mount": blob.digest, "from": mount_from})
        answer = await self.registry.send("POST", str(url))
        if answer.status in (201, 202):
            return answer
        raise self._failure(answer, "no such repository, or it may not be pushed to")

    async def _send(self, location: str, file: PushedFile | None, offset: int, end: int) -> tuple[str, int]:
        """Send the bytes up to ``end``; returns where to go on, and how much the registry has."""

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(offset, end, _PIECE):
                length = min(_PIECE, end - start)
                if file is None:
                    yield EMPTY_DATA[start : start + length]
                else:
                    yield await call_in_thread(partial(file.read, start, length))
                    if start + length > self._sent:
                        self.advance(start + length - self._sent)
                        self._sent = start + length

        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - offset),
            "Content-Range": f"{offset}-{end - 1}",
        }
        answer = await self.registry.send("PATCH", location, headers, pieces, patience=_PATIENCE)
        if answer.status not in (202, 204):
            raise self._upload_failure(answer)
        kept = self._offset(answer, end)
        if not offset < kept <= end:
            raise FetchError(Failure.REPLACED, f"{self.registry.name}: of bytes up to {end} it has kept {kept}")
        return self._location(answer), kept

    async def _finish(self, location: str, blob: Blob) -> None:
        # The rest of the query stays as it is: it may be signed.
        url = f"{location}{'&' if '?' in location else '?'}digest={quote(blob.digest, safe='')}"
        answer = await self.registry.send("PUT", url, {"Content-Length": "0"}, patience=_PATIENCE)
        if answer.status != 201:
            raise self._upload_failure(answer)

    async def _resume(self, location: str, blob: Blob) -> tuple[str, int]:
        """Where an upload is that broke off, and how much of it is there; or a new one."""
        answer = await self._repeated(lambda: self.registry.send("GET", location))
        kept = self._offset(answer, 0)
        if answer.status == 204 and kept <= blob.size:
            return self._location(answer, location), kept
        answer = await self._repeated(lambda: self._begin(blob, None))
        return self._location(answer), 0

    async def _repeated(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer to a short question, asked again when there is none."""
        failures = 0
        while True:
            try:
                with trio.fail_after(_LONGEST_ANSWER):
                    answer = await ask()
                self._has_answered = True
                if answer.status not in (429, 500, 502, 503, 504) or failures == _MAX_FAILURES:
                    return answer
                error = self._failure(answer, "")
            except FetchError as caught:
                error = caught
            except trio.TooSlowError:
                error = self._too_slow()
            limit = _MAX_FAILURES if self._has_answered else _FIRST_FAILURES
            if error.failure not in _PASSING or failures >= limit:
                raise error
            failures += 1
            await self._pause(error, failures)

    def _too_slow(self) -> FetchError:
        return FetchError(Failure.UNREACHABLE, f"{self.registry.name}: no answer within {_LONGEST_ANSWER:.0f} s")

    async def _pause(self, error: FetchError, failures: int) -> None:
        self.note(f"{error}; trying again")
        pause = error.retry_after or _FIRST_PAUSE * 2 ** (failures - 1)
        await trio.sleep(min(pause, _LONGEST_PAUSE))

    def _failure(self, answer: Answer, absent: str) -> FetchError:
        return self.registry.failure(answer.status, answer.headers, answer.body, absent)

    def _upload_failure(self, answer: Answer) -> FetchError:
        error = self._failure(answer, "the upload is gone")
        if answer.status in (404, 416):
            # The registry has another idea of the upload: it is asked, or begun anew.
            return FetchError(Failure.REPLACED, str(error))
        return error

    def _location(self, answer: Answer, otherwise: str = "") -> str:
        location = answer.headers.get("location", otherwise)
        if not location:
            raise FetchError(Failure.UNUSABLE, f"{self.registry.name}: the registry does not say where to upload to")
        return str(self.registry.follow(answer.url, location))

    def _offset(self, answer: Answer, otherwise: int) -> int:
        """How many bytes the registry has, by its header Range, ``0-LAST``; 0-0 is none, as it is in most registries
        (none of our blobs has one byte)."""
        match = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,19})", answer.headers.get("range", ""))
        if match is None:
            return otherwise
        return int(match[1]) + 1 if int(match[1]) else 0
