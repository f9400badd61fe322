"""Pushing an image to S3, in parts. Synchronous: botocore is.

Parts that an earlier push of the same key has left behind are kept where they have our bytes, by their ETag, which is
the MD5 of a part (but for some kinds of encryption: then they are sent again). So a push that broke off goes on; until
then, or until a lifecycle rule of the bucket ends it, S3 keeps the parts, and charges for them.

Source: "Uploading and copying objects using multipart upload" and "Amazon S3 multipart upload limits" of the S3 user
guide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from mystfuse.formats.fssig import FSSIG_SIZE, has_fssig_magic
from mystfuse.formats.oci_artifact import CONTENT_TYPE
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.pushed import Pushed, PushedFile
from mystfuse.remote.s3_address import S3Object
from mystfuse.remote.s3_client import S3Client
from mystfuse.remote.s3_errors import NO_CREDENTIALS, S3Error
from mystfuse.system.pool import run_in_order

_PART = 16 << 20
"""Bytes, at least."""
_MAX_PARTS = 10_000
_MAX_LISTED = 20
"""Unfinished uploads that are looked at."""


@dataclass
class S3Push:
    """One push.

    Args:
        name: the address, for messages.
        advance: called with the number of bytes that have been sent, or need not be.
    """

    name: str
    wanted: S3Object
    config: FetcherConfig
    advance: Callable[[int], None]
    _s3: S3Client = field(init=False)

    def push(self, file: PushedFile, force: bool) -> Pushed:
        """Push it.

        Args:
            force: even if the object is there, of the same size and with the same fssig.

        Raises:
            FetchError: S3 refuses it, or does not answer, in spite of repetition.
            ImageReadError: the file cannot be read.
        """
        try:
            self._s3 = S3Client(self.config)
            if not self._s3.has_credentials:
                raise FetchError(Failure.DENIED, f"{self.name}: {NO_CREDENTIALS}")
            if not force and (there := self._present(file)) is not None:
                self.advance(file.size)
                return Pushed(self._address(there), "present", 0)
            answer, sent = self._send(file)
        except ClientError as error:
            raise self._failure(error) from error
        except BotoCoreError as error:
            raise FetchError(Failure.UNREACHABLE, f"{self.name}: {error}") from error
        return Pushed(self._address(answer), "sent" if sent == file.size else "resumed", sent)

    @property
    def _place(self) -> dict[str, str]:
        return {"Bucket": self.wanted.bucket, "Key": self.wanted.key}

    def _present(self, file: PushedFile) -> dict[str, Any] | None:
        """What S3 says of the object, if it is this image: an fssig has the root hash of all before it."""
        tail = file.read(file.size - FSSIG_SIZE, FSSIG_SIZE) if file.size >= FSSIG_SIZE else b""
        if not has_fssig_magic(tail):
            return None
        try:
            answer: dict[str, Any] = self._s3.client.get_object(**self._place, Range=f"bytes=-{FSSIG_SIZE}")
            body: bytes = answer["Body"].read(FSSIG_SIZE + 1)
        except ClientError as error:
            # Who may write, but not read, sends it. Other errors come again.
            if _status(error) in (403, 404, 416):
                return None
            raise
        return answer if body == tail and answer.get("ContentRange", "").endswith(f"/{file.size}") else None

    def _send(self, file: PushedFile) -> tuple[dict[str, Any], int]:
        """What S3 says of the new object, and how many bytes were sent for it."""
        size = max(_PART, -(-file.size // _MAX_PARTS))
        size += -size % (1 << 20)
        if file.size <= size:
            data = file.read(0, file.size)
            answer: dict[str, Any] = self._s3.client.put_object(**self._place, Body=data, ContentType=CONTENT_TYPE)
            self.advance(file.size)
            return answer, file.size
        upload, parts = self._unfinished(file, size)
        if upload is None:
            begun = self._s3.client.create_multipart_upload(**self._place, ContentType=CONTENT_TYPE)
            upload, parts = begun["UploadId"], {}
        done = list(run_in_order(self._jobs(file, size, upload, parts)))
        answer = self._s3.client.complete_multipart_upload(
            **self._place,
            UploadId=upload,
            MultipartUpload={"Parts": [{"PartNumber": number, "ETag": tag} for number, (tag, _) in enumerate(done, 1)]},
        )
        return answer, sum(sent for _, sent in done)

    def _jobs(
        self, file: PushedFile, size: int, upload: str, parts: dict[int, dict[str, Any]]
    ) -> Iterator[Callable[[], tuple[str, int]]]:
        for number, offset in enumerate(range(0, file.size, size), 1):
            length = min(size, file.size - offset)
            yield partial(self._send_part, file, offset, length, number, upload, parts.get(number))

    def _send_part(
        self, file: PushedFile, offset: int, length: int, number: int, upload: str, there: dict[str, Any] | None
    ) -> tuple[str, int]:
        """In any thread. Returns the part's ETag, and how many bytes were sent."""
        data = file.read(offset, length)
        if there is not None and _is(there, data):
            self.advance(length)
            return str(there["ETag"]), 0
        answer = self._s3.client.upload_part(**self._place, UploadId=upload, PartNumber=number, Body=data)
        self.advance(length)
        return str(answer["ETag"]), length

    def _unfinished(self, file: PushedFile, size: int) -> tuple[str | None, dict[int, dict[str, Any]]]:
        """An upload of this key that has our first part, and all its parts by number."""
        first = file.read(0, size)
        try:
            listed = self._s3.client.list_multipart_uploads(Bucket=self.wanted.bucket, Prefix=self.wanted.key)
            uploads = [entry for entry in listed.get("Uploads", ()) if entry["Key"] == self.wanted.key]
            for entry in sorted(uploads, key=lambda entry: str(entry.get("Initiated")))[: -_MAX_LISTED - 1 : -1]:
                pages = self._s3.client.get_paginator("list_parts").paginate(**self._place, UploadId=entry["UploadId"])
                parts = {part["PartNumber"]: part for page in pages for part in page.get("Parts", ())}
                if 1 in parts and _is(parts[1], first):
                    return entry["UploadId"], parts
        except ClientError as error:
            # It need not be allowed to look.
            if _status(error) not in (403, 404):
                raise
        return None, {}

    def _address(self, answer: dict[str, Any]) -> str:
        version = answer.get("VersionId") or ""
        return S3Object(self.wanted.bucket, self.wanted.key, "" if version == "null" else version).address

    def _failure(self, error: ClientError) -> FetchError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        known = S3Error(code, "").failure(self.name, _status(error), has_credentials=True)
        return known or FetchError(Failure.UNUSABLE, f"{self.name}: S3 refuses it: {error}")


def _is(part: dict[str, Any], data: bytes) -> bool:
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return part.get("Size") == len(data) and str(part.get("ETag")).strip('"') == digest


def _status(error: ClientError) -> int:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else 0
