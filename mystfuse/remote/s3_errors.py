"""What S3 means by an error: its XML document, or its HTTP status.

Source: "Error responses" of the S3 API reference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mystfuse.remote.origin import Failure, FetchError

NO_CREDENTIALS = (
    "no credentials have been found (AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws, of a container or an instance)"
)
_KINDS = {
    "NoSuchBucket": (Failure.ABSENT, "there is no such bucket"),
    "NoSuchKey": (Failure.ABSENT, "the bucket has no such key"),
    "NoSuchVersion": (Failure.ABSENT, "the object has no such version"),
    "MethodNotAllowed": (Failure.ABSENT, "that version is a delete marker: the object has been removed"),
    "PreconditionFailed": (Failure.REPLACED, "another object has taken its place"),
    "ExpiredToken": (Failure.DENIED, "the credentials have expired"),
    "TokenRefreshRequired": (Failure.DENIED, "the credentials have expired"),
    "InvalidToken": (Failure.DENIED, "the session token of the credentials is not valid"),
    "InvalidAccessKeyId": (Failure.DENIED, "there is no such access key"),
    "SignatureDoesNotMatch": (Failure.DENIED, "the secret access key is not that of the access key"),
    "RequestTimeTooSkewed": (Failure.DENIED, "this machine's clock is wrong"),
    "InvalidObjectState": (Failure.UNUSABLE, "the object is archived: restore it first"),
    "InvalidRange": (Failure.UNUSABLE, "it is empty, or shorter than the range"),
    "SlowDown": (Failure.BUSY, "S3 asks for fewer requests"),
    "ServiceUnavailable": (Failure.BUSY, "S3 is busy"),
    "InternalError": (Failure.UNREACHABLE, "S3 has an internal error"),
    "RequestTimeout": (Failure.UNREACHABLE, "S3 waited for the request too long"),
}
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_REGION = re.compile(rb"<Region>([a-z0-9-]{1,32})</Region>")


@dataclass(frozen=True, slots=True)
class S3Error:
    """An answer that is no object."""

    code: str
    """Empty if it has none."""
    region: str
    """Where the bucket is, if the answer says so."""

    @classmethod
    def parse(cls, headers: Mapping[str, str], body: bytes) -> S3Error:
        """From headers with names in any case, and at most the first bytes of the body."""
        code, region = _CODE.search(body), _REGION.search(body)
        named = headers.get("x-amz-bucket-region", "")
        if not re.fullmatch(r"[a-z0-9-]{1,32}", named):
            named = region[1].decode() if region else ""
        return cls(code[1].decode() if code else "", named)

    def failure(self, name: str, status: int, *, has_credentials: bool) -> FetchError | None:
        """The failure of the object ``name``; None if the code says nothing that the status does not."""
        if self.code == "AccessDenied" or (status == 403 and not self.code):
            why = (
                "these credentials give no access to it, or it is not there"
                if has_credentials
                else f"it is not public, or not there, and {NO_CREDENTIALS}"
            )
            return FetchError(Failure.DENIED, f"{name}: access denied: {why}")
        if self.code in _KINDS:
            kind, why = _KINDS[self.code]
            return FetchError(kind, f"{name}: {why} ({self.code})")
        return None
