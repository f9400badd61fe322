"""Which kind of origin an address has."""

from __future__ import annotations

from mystfuse.errors import UsageError
from mystfuse.remote.address import Address
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.origin import Failure, FetchError, Origin


def make_origin(address: Address, config: FetcherConfig) -> Origin:
    """The origin of an address; it is asked nothing yet. What the other kinds need is not imported.

    Raises:
        FetchError: the address or a file of the configuration is not what it should be.
    """
    if address.scheme in ("http", "https"):
        from mystfuse.remote.http_client import HttpClient
        from mystfuse.remote.http_origin import HttpOrigin

        return HttpOrigin(address, HttpClient(config.ca_certificates, config.client_certificate))
    try:
        if address.scheme == "s3":
            from mystfuse.remote.s3_origin import S3Origin

            return S3Origin(address, config)
        from mystfuse.remote.oci_origin import OciOrigin

        return OciOrigin(address, config)
    except UsageError as error:
        raise FetchError(Failure.UNUSABLE, str(error)) from error
