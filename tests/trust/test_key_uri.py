"""URIs of keys in tokens: what is taken from them, and that a PIN is in no message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import UsageError
from mystfuse.trust.key_uri import KeyUri

PIN = "s3cret"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("pkcs11:token=signing;object=key", KeyUri("pkcs11:token=signing;object=key", True)),
        ("pkcs11:id=%01%ff;type=private", KeyUri("pkcs11:id=%01%ff;type=private", True)),
        ("pkcs11:object=a?pin-value=12%2034", KeyUri("pkcs11:object=a", True, b"12 34")),
        ("pkcs11:object=a?pin-value=", KeyUri("pkcs11:object=a", True, b"")),
        # As libp11 writes it.
        ("pkcs11:object=a;pin-value=1234;token=t", KeyUri("pkcs11:object=a;token=t", True, b"1234")),
        ("pkcs11:object=a?pin-source=file:/etc/pin", KeyUri("pkcs11:object=a", True, None, "/etc/pin")),
        ("pkcs11:object=a?pin-source=file:///etc/pin", KeyUri("pkcs11:object=a", True, None, "/etc/pin")),
        ("pkcs11:object=a?pin-source=/etc/p%20n", KeyUri("pkcs11:object=a", True, None, "/etc/p n")),
        ("pkcs11:object=a?pin-source=pin", KeyUri("pkcs11:object=a", True, None, "pin")),
        ("pkcs11:object=a?pin-source=|pass%20show%20x", KeyUri("pkcs11:object=a", True, None, None, "pass show x")),
        ("pkcs11:object=a?pin-source=%7Cget", KeyUri("pkcs11:object=a", True, None, None, "get")),
        (
            "pkcs11:object=a?module-path=/usr/lib/x.so&pin-value=1",
            KeyUri("pkcs11:object=a", True, b"1", module_path="/usr/lib/x.so"),
        ),
        ("PKCS11:object=a?pin-value=1", KeyUri("pkcs11:object=a", True, b"1")),
        ("handle:0x81000001", KeyUri("handle:0x81000001", False)),
        ("handle:0x81ABcdef?pass", KeyUri("handle:0x81ABcdef?pass", False, wants_passphrase=True)),
        ("private.pem", None),
        ("./pkcs11:token=a", None),
        ("dir/handle:0x81000001", None),
        ("-", None),
    ],
)
def test_what_a_uri_says(value: str, expected: KeyUri | None) -> None:
    assert KeyUri.parse(value) == expected


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("pkcs11:", "names no key"),
        (f"pkcs11:?pin-value={PIN}", "names no key"),
        ("pkcs11:nonsense=1", "nonsense: no attribute"),
        ("pkcs11:object", "object: no attribute"),
        (f"pkcs11:object=a;object=b?pin-value={PIN}", "object is there twice"),
        (f"pkcs11:object=a?pin-value={PIN}&pin-source=/x", "exclude each other"),
        (f"pkcs11:object=a?pin-value={PIN}%x", "pin-value: % without two hex digits"),
        (f"pkcs11:object=a b?pin-value={PIN}", "not a URI"),
        ("pkcs11:object=ä", "not a URI"),
        ("pkcs11:object=a?pin-source=", "pin-source: not a path"),
        ("pkcs11:object=a?pin-source=file:", "pin-source is empty"),
        ("pkcs11:object=a?pin-source=https://x/y", "https: is not supported"),
        ("pkcs11:object=a?pin-source=%ff", "pin-source: not a path"),
        ("pkcs11:object=a?module-path=%00", "module-path: not a path"),
        ("pkcs11:object=" + "a" * 5000, "not a URI"),
        ("handle:", "not the persistent handle"),
        ("handle:0x80000001", "not the persistent handle"),
        ("handle:0x81000001?pass=x", "not the persistent handle"),
        ("handle:81000001", "not the persistent handle"),
    ],
)
def test_a_wrong_uri_is_refused(value: str, word: str) -> None:
    with pytest.raises(UsageError, match=word.replace("?", r"\?")) as error:
        KeyUri.parse(value)
    assert PIN not in str(error.value)


@given(st.text(st.characters(codec="ascii"), max_size=60).map(lambda text: f"pkcs11:{text}"))
def test_any_text_is_a_uri_or_refused(value: str) -> None:
    try:
        uri = KeyUri.parse(value)
    except UsageError:
        return
    assert uri is not None
    assert "pin-" not in uri.text and uri.text.isprintable()


@given(
    st.lists(st.sampled_from(["token=t", "object=a", "id=%01", "type=private"]), min_size=1, unique=True),
    st.lists(st.sampled_from(["pin-value=1", "module-path=/x"]), unique=True),
)
def test_the_pin_is_taken_out_of_every_uri(path: list[str], query: list[str]) -> None:
    uri = KeyUri.parse("pkcs11:" + ";".join(path) + ("?" + "&".join(query) if query else ""))
    assert uri is not None and uri.text == "pkcs11:" + ";".join(path)
    assert uri.pin == (b"1" if "pin-value=1" in query else None)
    assert uri.module_path == ("/x" if "module-path=/x" in query else None)
