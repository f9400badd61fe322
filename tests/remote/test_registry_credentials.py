"""Where the user's credentials for registries are, and what registries ask for."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.registry_auth import Challenge, parse_challenges
from mystfuse.remote.registry_credentials import Credentials, credential_files, find_credentials

BEARER = 'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push"'


def entry(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": str(tmp_path / "home"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
    }


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))


def user_of(registry: str, repository: str, environment: dict[str, str]) -> str | None:
    found = find_credentials(registry, repository, environment)
    return found.user if found else None


def test_the_files_in_their_order(environment: dict[str, str], tmp_path: Path) -> None:
    first, second, third = credential_files(environment)
    assert first == tmp_path / "run/containers/auth.json"
    assert second == tmp_path / "home/.config/containers/auth.json"
    assert third == tmp_path / "home/.docker/config.json"
    assert user_of("r.example", "app", environment) is None
    for number, path in enumerate((third, second, first)):
        write(path, {"auths": {"r.example": entry(str(number), "x")}})
        assert user_of("r.example", "app", environment) == str(number)
    write(tmp_path / "named", {"auths": {"r.example": entry("named", "x")}})
    write(tmp_path / "docker/config.json", {"auths": {"d.example": entry("docker", "x")}})
    named = {**environment, "REGISTRY_AUTH_FILE": str(tmp_path / "named"), "DOCKER_CONFIG": str(tmp_path / "docker")}
    assert user_of("r.example", "app", named) == "named"
    assert user_of("d.example", "app", named) == "docker"


def test_the_most_special_entry_wins(environment: dict[str, str]) -> None:
    path = credential_files(environment)[0]
    keys = ("r.example", "r.example/team", "r.example/team/app", "r.example/tea", "r.example:5000")
    write(path, {"auths": {key: entry(str(number), "x") for number, key in enumerate(keys)}})
    assert user_of("r.example", "team/app", environment) == "2"
    assert user_of("r.example", "team/app/x", environment) == "2"
    assert user_of("r.example", "team/other", environment) == "1"
    assert user_of("r.example", "others/app", environment) == "0"
    assert user_of("r.example:5000", "team/app", environment) == "4"
    assert user_of("other.example", "team/app", environment) is None


@pytest.mark.parametrize("key", ["https://r.example", "https://r.example/", "https://r.example/v2/", "r.example/"])
def test_keys_as_docker_writes_them(environment: dict[str, str], key: str) -> None:
    write(credential_files(environment)[2], {"auths": {key: entry("user", "pass:word")}})
    assert find_credentials("r.example", "app", environment) == Credentials("user", "pass:word")


def test_docker_hub_by_its_old_name(environment: dict[str, str]) -> None:
    write(credential_files(environment)[2], {"auths": {"https://index.docker.io/v1/": entry("user", "x")}})
    assert user_of("docker.io", "library/x", environment) == "user"
    assert user_of("r.example", "library/x", environment) is None


def test_helpers(environment: dict[str, str], tmp_path: Path) -> None:
    path = credential_files(environment)[2]
    helper = tmp_path / "bin/docker-credential-one"
    write(helper, "#!/bin/sh\nread server; echo $1 $server >> $HOME/asked\n"
          'case $server in r.example) echo \'{"Username":"<token>","Secret":"token"}\';;'
          " *) echo credentials not found in native keychain; exit 1;; esac\n")  # fmt: skip
    helper.chmod(0o755)
    (tmp_path / "home").mkdir(exist_ok=True)
    write(path, {"credsStore": "one", "auths": {"r.example": {}, "other.example": entry("kept", "x")}})
    assert find_credentials("r.example", "app", environment) == Credentials("", "", "token")
    assert user_of("other.example", "app", environment) == "kept"
    assert user_of("docker.io", "app", environment) is None
    asked = (tmp_path / "home/asked").read_text().splitlines()
    assert asked == ["get r.example", "get other.example", "get https://index.docker.io/v1/"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ("[" * 100_000, "not JSON"),
        ({"auths": {"r.example": {"auth": "ä"}}}, "not base64"),
        ({"auths": {"r.example": {"auth": 5}}}, "not base64"),
        ({"auths": {"r.example": {"username": 5, "password": "x"}}}, "no texts"),
        ({"credHelpers": {"r.example": "../../bin/sh"}}, "whose name cannot be one"),
        ({"credHelpers": {"r.example": "not-there"}}, "docker-credential-not-there"),
    ],
)
def test_files_that_are_broken(environment: dict[str, str], document: Any, words: str) -> None:
    write(credential_files(environment)[0], document)
    with pytest.raises(FetchError, match=words) as caught:
        find_credentials("r.example", "app", environment)
    assert caught.value.failure is Failure.DENIED


@pytest.mark.parametrize("document", [{}, {"auths": None}, {"auths": []}, {"auths": {"r.example": None}},
                                      {"auths": {"r.example": {}}}, {"credHelpers": 5}])  # fmt: skip
def test_files_without_anything(environment: dict[str, str], document: Any) -> None:
    write(credential_files(environment)[0], document)
    assert find_credentials("r.example", "app", environment) is None


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(Credentials("user", "secret", "secret"))


def test_challenges() -> None:
    bearer = Challenge(
        "bearer",
        {
            "realm": "https://auth.example/token",
            "service": "registry.example",
            "scope": "repository:a/b:pull,push",
        },
    )
    assert parse_challenges(BEARER) == [bearer]
    assert parse_challenges(f'Basic realm="a \\"b\\"", {BEARER}') == [Challenge("basic", {"realm": 'a "b"'}), bearer]
    assert parse_challenges(f"Negotiate, {BEARER}") == [bearer]
    assert parse_challenges("basic") == [Challenge("basic", {})]
    assert parse_challenges("BASIC Realm=x") == [Challenge("basic", {"realm": "x"})]
    assert parse_challenges("") == [] == parse_challenges("!!") == parse_challenges('Digest realm="x"')


@given(st.text(st.sampled_from('Bearer basic="\\,realm \t;x'), max_size=200) | st.text(max_size=50))
def test_any_challenge_is_parsed(text: str) -> None:
    assert all(challenge.scheme in ("basic", "bearer") for challenge in parse_challenges(text))
