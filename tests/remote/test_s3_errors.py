"""What S3 means by its errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.remote.origin import Failure
from mystfuse.remote.s3_errors import S3Error

NAME = "s3://bucket/key"


def body_of(code: str, more: str = "") -> bytes:
    return f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>words</Message>{more}</Error>'.encode()


@pytest.mark.parametrize(
    ("status", "code", "failure"),
    [
        (404, "NoSuchKey", Failure.ABSENT),
        (404, "NoSuchBucket", Failure.ABSENT),
        (400, "ExpiredToken", Failure.DENIED),
        (403, "InvalidAccessKeyId", Failure.DENIED),
        (403, "SignatureDoesNotMatch", Failure.DENIED),
        (403, "RequestTimeTooSkewed", Failure.DENIED),
        (403, "AccessDenied", Failure.DENIED),
        (403, "", Failure.DENIED),
        (405, "MethodNotAllowed", Failure.ABSENT),
        (503, "SlowDown", Failure.BUSY),
        (500, "InternalError", Failure.UNREACHABLE),
        (403, "InvalidObjectState", Failure.UNUSABLE),
    ],
)
def test_errors(status: int, code: str, failure: Failure) -> None:
    error = S3Error.parse({}, body_of(code) if code else b"").failure(NAME, status, has_credentials=True)
    assert error is not None and error.failure is failure
    assert str(error).startswith(f"{NAME}: ")


def test_what_says_nothing_more_than_its_status() -> None:
    assert S3Error.parse({}, b"<html>").failure(NAME, 404, has_credentials=True) is None
    assert S3Error.parse({}, body_of("Unheard")).failure(NAME, 400, has_credentials=True) is None


def test_who_has_no_credentials_is_told_so() -> None:
    error = S3Error.parse({}, body_of("AccessDenied")).failure(NAME, 403, has_credentials=False)
    assert error is not None and "no credentials have been found" in str(error)


def test_the_region_of_a_bucket() -> None:
    malformed = body_of("AuthorizationQueryParametersError", "<Region>eu-west-1</Region>")
    assert S3Error.parse({}, malformed).region == "eu-west-1"
    assert S3Error.parse({"x-amz-bucket-region": "us-west-2"}, malformed).region == "us-west-2"
    assert S3Error.parse({"x-amz-bucket-region": "../evil"}, b"").region == ""


@given(st.text(max_size=100), st.binary(max_size=300))
def test_any_answer_is_parsed(header: str, body: bytes) -> None:
    error = S3Error.parse({"x-amz-bucket-region": header}, body)
    assert error.code.isalnum() or not error.code.replace(".", "").strip()
