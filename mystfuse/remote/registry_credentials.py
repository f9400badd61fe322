"""The user's credentials for a registry: where podman, skopeo and docker keep them.

Sources: containers-auth.json(5); "docker login" and "Credential helpers" in Docker's command-line reference.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mystfuse.remote.origin import Failure, FetchError

_MAX_FILE = 1 << 20
_MAX_ANSWER = 64 << 10
_HELPER_TIMEOUT = 30.0
"""Seconds."""
_DOCKER_HUB = {"docker.io", "index.docker.io", "registry-1.docker.io"}
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""Docker's own name for its registry."""
_NO_USER = "<token>"
"""The user of an identity token, of a helper's."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password, or an identity token, for one registry."""

    user: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of the header Authorization (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def credential_files(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """The files that may have credentials, in the order in which they are asked."""
    home = Path(environment.get("HOME") or "/nonexistent")
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.getuid()}"
    primary = environment.get("REGISTRY_AUTH_FILE")
    configuration = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    docker = Path(environment.get("DOCKER_CONFIG") or home / ".docker")
    return [
        Path(primary) if primary else Path(runtime, "containers/auth.json"),
        configuration / "containers/auth.json",
        docker / "config.json",
    ]


def find_credentials(registry: str, repository: str, environment: Mapping[str, str] = os.environ) -> Credentials | None:
    """The credentials for a repository, or None. Helpers may take their time: call it in a thread.

    Raises:
        FetchError: DENIED: a file is broken, or a helper fails.
    """
    for path in credential_files(environment):
        document = _read(path)
        if found := _find(document, registry, repository, path, environment):
            return found
    return None


def _find(
    document: dict[str, Any], registry: str, repository: str, path: Path, environment: Mapping[str, str]
) -> Credentials | None:
    helpers, auths = document.get("credHelpers"), document.get("auths")
    names = _DOCKER_HUB if registry in _DOCKER_HUB else {registry}
    if isinstance(helpers, dict):
        for key, helper in helpers.items():
            if _host_of(key) in names:
                return _ask_helper(helper, registry, path, environment)
    if (store := document.get("credsStore")) and (found := _ask_helper(store, registry, path, environment)):
        return found
    if isinstance(auths, dict):
        by_name = {_host_of(key): value for key, value in auths.items()}
        for name in _from_most_special(names, repository):
            entry = by_name.get(name)
            if isinstance(entry, dict) and (found := _entry(entry, path)):
                return found
    return None


def _from_most_special(registries: set[str], repository: str) -> Iterator[str]:
    parts = repository.split("/")
    for count in range(len(parts), -1, -1):
        for registry in sorted(registries):
            yield "/".join((registry, *parts[:count]))


def _host_of(key: str) -> str:
    """A key of ``auths`` without what Docker has around the host: a scheme, and then a path of no meaning."""
    scheme, separator, rest = key.partition("://")
    return rest.partition("/")[0] if separator else scheme.rstrip("/")


def _entry(entry: dict[str, Any], path: Path) -> Credentials | None:
    token = entry.get("identitytoken") or ""
    user, password = entry.get("username") or "", entry.get("password") or ""
    if auth := entry.get("auth"):
        try:
            user, _, password = base64.b64decode(auth, validate=True).decode().rstrip("\0").partition(":")
        except (ValueError, TypeError):
            raise _broken(path, "an 'auth' that is not base64 of USER:PASSWORD") from None
    if not all(isinstance(text, str) for text in (token, user, password)):
        raise _broken(path, "an entry with values that are no texts")
    return Credentials(user, password, token) if password or token else None


def _ask_helper(helper: object, registry: str, path: Path, environment: Mapping[str, str]) -> Credentials | None:
    """Ask a program ``docker-credential-NAME``; None if it has nothing for the registry."""
    if not isinstance(helper, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", helper):
        raise _broken(path, "a credential helper whose name cannot be one")
    program = f"docker-credential-{helper}"
    server = _DOCKER_HUB_KEY if registry in _DOCKER_HUB else registry
    try:
        ended = subprocess.run(
            [program, "get"],
            input=server.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_HELPER_TIMEOUT,
            env=dict(environment),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(Failure.DENIED, f"{program}: no answer within {_HELPER_TIMEOUT:g} s") from None
    except OSError as error:
        raise FetchError(Failure.DENIED, f"{program}, which {path} names: {error.strerror}") from error
    if ended.returncode:
        if b"credentials not found" in ended.stdout[:_MAX_ANSWER]:
            return None
        raise FetchError(Failure.DENIED, f"{program}: exit status {ended.returncode} when asked for {server}")
    try:
        answer = json.loads(ended.stdout[:_MAX_ANSWER])
        user, secret = answer["Username"], answer["Secret"]
        if not isinstance(user, str) or not isinstance(secret, str):
            raise TypeError
    except (ValueError, RecursionError, TypeError, KeyError):
        raise FetchError(Failure.DENIED, f"{program}: its answer has no Username and Secret") from None
    return Credentials("", "", secret) if user == _NO_USER else Credentials(user, secret)


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        # Others' files, as podman's directory of another user, are as good as none.
        return {}
    except OSError as error:
        raise FetchError(Failure.DENIED, f"{path}: {error.strerror}") from error
    try:
        document = json.loads(data[:_MAX_FILE])
    except (ValueError, RecursionError):
        raise _broken(path, "not JSON") from None
    if not isinstance(document, dict):
        raise _broken(path, "not an object")
    return document


def _broken(path: Path, what: str) -> FetchError:
    return FetchError(Failure.DENIED, f"{path}: credentials cannot be read from it: {what}")
