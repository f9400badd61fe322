"""How a registry wants to be asked: without a name, with a password, or with a token of its token server.

Sources: RFC 9110, section 11 (challenges); "Token Authentication Specification" and "OAuth2 Token Authentication" of
the Distribution project.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx2
import trio

from mystfuse.remote.http_client import HttpClient
from mystfuse.remote.http_failures import failure_of_status
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.registry_credentials import Credentials, find_credentials
from mystfuse.system.threads import call_in_thread

_MAX_CHALLENGE = 8 << 10
_MAX_ANSWER = 1 << 20
_MAX_TOKEN = 64 << 10
_DEFAULT_LIFE = 60.0
"""Seconds for which a token is valid that does not say ("expires_in" of the specification)."""
_LONGEST_LIFE = 86400.0
_MARGIN = 10.0
"""Seconds before its end in which a token is not used."""
_CLIENT = "mystfuse"

_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9._-]*)(?:\s+|(?=,)|$)(?!=)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z_][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


@dataclass(frozen=True, slots=True)
class Challenge:
    """What an answer 401 asks for."""

    scheme: str
    """``basic`` or ``bearer``."""
    parameters: dict[str, str]


def parse_challenges(value: str) -> list[Challenge]:
    """The challenges in a header WWW-Authenticate, or several joined by commas, that we can answer."""
    found: list[Challenge] = []
    at, value = 0, value[:_MAX_CHALLENGE]
    while at < len(value) and (match := _SCHEME.match(value, at)):
        at = match.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(value, at):
            at = parameter.end()
            quoted = re.sub(r"\\(.)", r"\1", parameter[2]) if parameter[2] is not None else parameter[3]
            parameters[parameter[1].lower()] = quoted
        if match[1].lower() in ("basic", "bearer"):
            found.append(Challenge(match[1].lower(), parameters))
    return found


class RegistryAuth:
    """The header Authorization for requests to one repository.

    Args:
        name: of it, for messages.
        registry: as the address has it, the key of its credentials.
        base_url: of the registry.
        scopes: what a token is to allow, ``repository:NAME:ACTIONS``.
    """

    def __init__(
        self,
        name: str,
        registry: str,
        repository: str,
        base_url: str,
        client: HttpClient,
        scopes: Sequence[str],
    ) -> None:
        self._name = name
        self._registry = registry
        self._repository = repository
        self._base_url = base_url
        self._client = client
        self._scopes = scopes
        self._challenge: Challenge | None = None
        self._header = ""
        self._valid_until = float("inf")
        self._lock = trio.Lock()

    async def authorization(self) -> str:
        """The header Authorization for a request to the registry, and to nobody else; empty: none.

        Raises:
            FetchError: the token has expired, and there is no new one.
        """
        if self._is_stale():
            async with self._lock:
                if self._is_stale():
                    await self._renew()
        return self._header

    async def answer(self, challenges: str) -> None:
        """Get what the registry asks for.

        Args:
            challenges: the headers WWW-Authenticate of its answer, joined by commas.

        Raises:
            FetchError: there are no credentials, or the token server refuses them.
        """
        known = parse_challenges(challenges)
        if not known:
            raise FetchError(
                Failure.DENIED, f"{self._name}: access denied, and the registry does not say how to log in"
            )
        self._challenge = max(known, key=lambda challenge: challenge.scheme == "bearer")
        await self.renew()

    async def renew(self) -> None:
        """Read the credentials again, and get a new token.

        Raises:
            FetchError: there are none, or the token server refuses them.
        """
        async with self._lock:
            await self._renew()

    def _is_stale(self) -> bool:
        return self._challenge is not None and trio.current_time() > self._valid_until - _MARGIN

    async def _renew(self) -> None:
        challenge = self._challenge
        if challenge is None:
            raise FetchError(Failure.DENIED, f"{self._name}: access denied")
        credentials = await call_in_thread(lambda: find_credentials(self._registry, self._repository))
        if challenge.scheme == "bearer":
            await self._get_token(challenge, credentials)
        elif credentials is None:
            raise FetchError(
                Failure.DENIED,
                f"{self._name}: the registry wants a user and password, and none are kept for it: "
                f"skopeo login {self._registry}",
            )
        else:
            self._header = credentials.basic

    async def _get_token(self, challenge: Challenge, credentials: Credentials | None) -> None:
        realm = challenge.parameters.get("realm", "")
        allowed = ("https://",) if self._base_url.startswith("https:") else ("https://", "http://")
        if not realm.startswith(allowed):
            # It would get the password.
            raise FetchError(Failure.DENIED, f"{self._name}: its token server is at no {allowed[-1]} address")
        service = challenge.parameters.get("service", "")
        scopes = list(dict.fromkeys((*challenge.parameters.get("scope", "").split(), *self._scopes)))
        method, url, headers, content = self._request(realm, service, scopes, credentials)
        async with self._client.send(
            f"{self._name}, its token server", method, url, headers, content=content
        ) as answer:
            if answer.status != 200:
                raise self._refused(answer.status, answer.headers, credentials)
            self._take(await answer.read(_MAX_ANSWER))

    def _request(
        self, realm: str, service: str, scopes: list[str], credentials: Credentials | None
    ) -> tuple[str, httpx2.URL, dict[str, str], bytes | None]:
        """Method, URL, headers and body."""
        try:
            url = httpx2.URL(realm)
        except httpx2.InvalidURL as error:
            raise FetchError(Failure.UNUSABLE, f"{self._name}: its token server's address is none") from error
        if credentials is not None and credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
                "service": service,
                "client_id": _CLIENT,
                "scope": " ".join(scopes),
            }
            return "POST", url, {"Content-Type": "application/x-www-form-urlencoded"}, urlencode(form).encode()
        for scope in scopes:
            url = url.copy_add_param("scope", scope)
        if service:
            url = url.copy_add_param("service", service)
        return "GET", url, {"Authorization": credentials.basic} if credentials else {}, None

    def _refused(self, status: int, headers: Mapping[str, str], credentials: Credentials | None) -> FetchError:
        if status not in (400, 401, 403):
            return failure_of_status(f"{self._name}, its token server", status, headers)
        why = (
            f"the token server refuses the credentials that are kept for {self._registry}"
            if credentials
            else f"no credentials are kept for {self._registry}: skopeo login {self._registry}"
        )
        return FetchError(Failure.DENIED, f"{self._name}: access denied: {why} (HTTP {status})")

    def _take(self, body: bytes) -> None:
        try:
            document: Any = json.loads(body)
            token = document.get("token") or document.get("access_token")
            life = document.get("expires_in") or _DEFAULT_LIFE
        except (ValueError, RecursionError, AttributeError):
            token, life = None, _DEFAULT_LIFE
        if not isinstance(token, str) or len(token) > _MAX_TOKEN or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise FetchError(Failure.UNUSABLE, f"{self._name}: the token server answers without a token")
        if not isinstance(life, int | float) or not life > 0:
            life = _DEFAULT_LIFE
        self._header = f"Bearer {token}"
        # Even one of shorter life than the margin is used once.
        self._valid_until = trio.current_time() + min(max(life, 2 * _MARGIN), _LONGEST_LIFE)
