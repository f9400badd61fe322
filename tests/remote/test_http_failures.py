"""What answers and texts of servers become, whatever they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.remote.http_failures import LONGEST_RETRY_AFTER, detail_of, failure_of_status, retry_after
from mystfuse.remote.http_ranges import Range, parse_content_range

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
S3_ERROR = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>'


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", None),
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 18, LONGEST_RETRY_AFTER),
        ("9" * 4000, None),
        (format_datetime(NOW + timedelta(seconds=30), usegmt=True), 30.0),
        (format_datetime(NOW - timedelta(seconds=30), usegmt=True), 0.0),
        (format_datetime(NOW + timedelta(days=30), usegmt=True), LONGEST_RETRY_AFTER),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    headers = {"retry-after": value, "date": format_datetime(NOW, usegmt=True)}
    assert retry_after(headers) == seconds


@given(value=st.text(max_size=60), date=st.text(max_size=40))
def test_any_retry_after_is_bounded(value: str, date: str) -> None:
    seconds = retry_after({"retry-after": value, "date": date})
    assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (S3_ERROR, "AccessDenied: Request has expired"),
        (
            b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}',
            "UNAUTHORIZED: authentication required",
        ),
        (b"<html><head><title>502 Bad Gateway</title></head>...", "502 Bad Gateway"),
        (b"no such image\n", "no such image"),
        (b"<html><body>hello</body></html>", ""),
        (b"\x1f\x8b\x08\x00", ""),
        (b"", ""),
    ],
)
def test_errors_say_what_people_can_read(body: bytes, detail: str) -> None:
    assert detail_of(body) == detail


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b"<title>404 Not Found</title>", "404 Not Found"),
        (404, b"Not Found", "404 Not Found"),
        (400, b"<title>400 Plain HTTP to an HTTPS port</title>", "400 Bad Request (Plain HTTP to an HTTPS port)"),
    ],
)
def test_nothing_is_said_twice(status: int, body: bytes, said: str) -> None:
    assert str(failure_of_status("http://host/image", status, {}, body)) == f"http://host/image: {said}"


def test_who_gave_a_password_is_not_asked_to_give_one() -> None:
    text = str(failure_of_status("http://host/image", 401, {}, has_password=True))
    assert text.endswith("; the user and password in ~/.netrc or the address are not accepted")


@given(status=st.integers(100, 999), body=st.binary(max_size=300), wait=st.text(max_size=10))
def test_any_answer_becomes_one_line(status: int, body: bytes, wait: str) -> None:
    text = str(failure_of_status("http://host/image", status, {"retry-after": wait}, body))
    assert text.isprintable()
    assert text.startswith("http://host/image: ")
    assert len(text) < 500


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes 0-9/10", Range(0, 10, 10)),
        ("bytes 5-5/*", Range(5, 1, None)),
        ("bytes 9-5/10", None),
        ("bytes 0-10/10", None),
        ("bytes */10", None),
        ("bytes 0-9", None),
        ("items 0-9/10", None),
        ("bytes 0-" + "9" * 30 + "/*", None),
        ("", None),
    ],
)
def test_a_content_range_makes_sense_or_is_none(value: str, expected: Range | None) -> None:
    assert parse_content_range(value) == expected


@given(st.text(max_size=40))
def test_any_content_range_is_parsed(value: str) -> None:
    found = parse_content_range(value)
    assert found is None or (found.length > 0 and (found.total is None or found.start + found.length <= found.total))
