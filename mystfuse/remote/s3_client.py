"""botocore's client: endpoint, region and credentials as the AWS tools find them. It is synchronous."""

from __future__ import annotations

import os
import ssl
from typing import Any

import botocore.session
from botocore import UNSIGNED
from botocore.config import Config

from mystfuse.remote.fetcher_config import FetcherConfig

_CONNECT_TIMEOUT = 10.0
_READ_TIMEOUT = 60.0
"""Seconds without a byte."""


class S3Client:
    """A client of S3 for one region.

    Searching for credentials asks, in this order: environment, assumed roles, web identities, single sign-on, profiles,
    ``credential_process``, the container's and the instance's metadata. The first that has some wins.

    Args:
        region: None: as configured.

    Raises:
        botocore.exceptions.BotoCoreError: the configuration is broken, or credentials that should be there cannot be
            got. Other exceptions are possible: a program, or a file, of the user's.
    """

    def __init__(self, config: FetcherConfig, region: str | None = None) -> None:
        session = botocore.session.Session()
        authorities = config.ca_certificates or session.get_config_variable("ca_bundle") or _system_authorities()
        if authorities:
            # Of the session: also for the services that give credentials.
            session.set_config_variable("ca_bundle", authorities)
        self.has_credentials = session.get_credentials() is not None
        self.client: Any = session.create_client(
            "s3",
            region_name=region,
            config=Config(
                signature_version="s3v4" if self.has_credentials else UNSIGNED,
                client_cert=config.client_certificate,
                connect_timeout=_CONNECT_TIMEOUT,
                read_timeout=_READ_TIMEOUT,
                retries={"mode": "standard", "total_max_attempts": 8},
                # Old servers that speak S3 do not know the newer checksums; ours is the hash tree.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


def _system_authorities() -> str | None:
    """What the system trusts, rather than what came with botocore."""
    found = ssl.get_default_verify_paths().cafile
    return found if found is not None and os.path.exists(found) else None
