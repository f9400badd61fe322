"""What a fetcher may do besides talking to the network: read what that needs, and write in its cache.

Its worker parses what strangers send. Taken over, it has the credentials, which it needs, and the image as the network
has it; it must not get at keys of images, change files, or have programs do that. So it has no capabilities, and by
Landlock it opens nothing but these paths.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress

from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.system.confinement import drop_privileges
from mystfuse.system.landlock import restrict_to_paths

_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix/store", "/gnu/store", "/proc", "/sys",
    "/dev/zero", "/dev/urandom", "/dev/random",
)  # fmt: skip
"""Libraries, and what they read. Landlock keeps /proc/PID/environ and the like of other processes from it."""
_ETC = (
    "resolv.conf", "hosts", "host.conf", "nsswitch.conf", "gai.conf", "services", "protocols", "networks", "passwd",
    "group", "localtime", "timezone", "mime.types", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "machine-id",
    "ssl/certs", "ssl/cert.pem", "ssl/openssl.cnf", "ca-certificates", "ca-certificates.conf", "crypto-policies",
    "pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf", "pki/ca-trust", "containers", "krb5.conf",
)  # fmt: skip
"""Of /etc: not all of it, since keys of images may be there."""
_RUN = (
    "systemd/resolve", "resolvconf", "NetworkManager", "connman", "nscd", "netconfig", "containers",
    "secrets/kubernetes.io", "secrets/eks.amazonaws.com",
)  # fmt: skip
_HOME = (".netrc", ".aws", ".boto", ".docker", ".config/containers")
"""Files with credentials for the network."""
_VARIABLES = (
    "NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "BOTO_CONFIG",
    "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_DATA_PATH", "AWS_LOGIN_CACHE_DIRECTORY", "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
)  # fmt: skip
"""Those with paths of such files."""
_TOKENS = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
"""Those with paths of files that are replaced while they are in use: their directories."""
_NAMES_PROGRAM = re.compile(rb"credsStore|credHelpers|credential-helpers|credential_process|sso_|login_session")
"""What in a file with credentials says that a program gets them, or that files of others are needed or written."""
_TOKEN_CACHES = (".aws/sso/cache", ".aws/login/cache", ".aws/cli/cache", ".aws/boto/cache")
_MAX_FILE = 1 << 20


def confine_fetcher(config: FetcherConfig, environment: Mapping[str, str] = os.environ) -> int:
    """Confine this process, which must have one thread, for good; the cache's directory exists.

    Where credentials come from a program of the user's choice, nobody knows what that reads or runs: then everything
    may be read and executed, and still nothing be written but tokens of AWS's single sign-on, where those are.

    Returns:
        The version of Landlock that is in force; 0 for none.

    Raises:
        OSError: the system does not let privileges be dropped, which it has no reason to.
    """
    drop_privileges()
    writable = [config.cache] if config.cache is not None else []
    if any(not address.startswith("http") for address in config.addresses) and wants_program(environment):
        home = environment.get("HOME") or os.path.expanduser("~")
        return restrict_to_paths(["/"], ["/"], [*writable, *(f"{home}/{name}" for name in _TOKEN_CACHES)])
    return restrict_to_paths(readable_paths(config, environment), [], writable)


def readable_paths(config: FetcherConfig, environment: Mapping[str, str]) -> list[str]:
    """What a fetcher reads; not all of it exists."""
    of_config = [path for path in (config.ca_certificates, config.client_certificate) if path is not None]
    # Where Python and we ourselves are installed.
    own = [path for path in (sys.prefix, sys.base_prefix, *sys.path) if os.path.isabs(path) and path != "/"]
    own.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + "/mystfuse")
    system = [*_SYSTEM, *(f"/etc/{name}" for name in _ETC), *(f"/run/{name}" for name in _RUN)]
    return [*system, *own, *of_config, *_credential_paths(environment)]


class ReplacedFiles:
    """Notices when a file that may be read was replaced by another, which may not: Landlock knows files, not names. A
    process that is confined anew can read it.
    """

    def __init__(self, config: FetcherConfig, environment: Mapping[str, str] = os.environ) -> None:
        self._files = {path: found for path in readable_paths(config, environment) if (found := _file(path))}

    def are_there(self) -> bool:
        """Whether a file has been replaced; one that is gone has not been, yet."""
        return any(_file(path) not in (found, None) for path, found in self._files.items())


def wants_program(environment: Mapping[str, str]) -> bool:
    """Whether a file with credentials names a program that gets them."""
    return any(map(_names_program, _credential_files(environment)))


def _file(path: str) -> tuple[int, int] | None:
    """Which regular file has a name, if one has."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _names_program(path: str) -> bool:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            return _NAMES_PROGRAM.search(file.read(_MAX_FILE)) is not None
    return False


def _credential_files(environment: Mapping[str, str]) -> Iterator[str]:
    for path in _credential_paths(environment):
        yield path
        for name in ("config", "config.json", "auth.json", "credentials"):
            yield f"{path}/{name}"
    for name in ("auth.json", "registries.conf"):
        yield f"/etc/containers/{name}"


def _credential_paths(environment: Mapping[str, str]) -> Iterator[str]:
    home = environment.get("HOME") or os.path.expanduser("~")
    if os.path.isabs(home):
        yield from (f"{home}/{name}" for name in _HOME)
    for variable, below in (("XDG_CONFIG_HOME", "containers"), ("XDG_RUNTIME_DIR", "containers")):
        if directory := environment.get(variable):
            yield f"{directory}/{below}"
    yield f"/run/user/{os.getuid()}/containers"
    for name in _VARIABLES:
        for path in environment.get(name, "").split(os.pathsep):
            if os.path.isabs(path) or path.startswith("~"):
                yield os.path.expanduser(path)
    for name in _TOKENS:
        if token := environment.get(name):
            yield os.path.dirname(token)
