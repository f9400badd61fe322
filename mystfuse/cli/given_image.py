"""The image that a command line names: all options for opening it, and opening it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from mystfuse.cli.key_options import key_options, load_keys
from mystfuse.cli.options import option_group
from mystfuse.cli.remote_options import remote_options
from mystfuse.cli.trust_options import load_trust, trust_options
from mystfuse.cli.verity_options import open_image_source, verity_options
from mystfuse.devices.patience import IO_TIMEOUT, PatientSource
from mystfuse.image.keys import Keys
from mystfuse.trust.sources import TrustOptions

image_options = option_group(trust_options, verity_options, key_options, remote_options)


class GivenImage:
    """An image that a command line names, its file open.

    Args:
        path: of the image.
        given: ``image_options`` and ``io_timeout`` by the names of their parameters; those that are missing have their
            defaults. A ``policy`` among them replaces all trust options, and this machine's trust directory.

    Raises:
        UsageError, FormatError, ImageReadError, StorageTimeout: as ``open_image_source``.
    """

    def __init__(self, path: str, given: Mapping[str, Any]) -> None:
        self.given = given
        self.io_timeout: float = given.get("io_timeout", IO_TIMEOUT)
        self.source, self.hash_offset = open_image_source(path, given)

    @property
    def patient_source(self) -> PatientSource:
        """The file, for reading without an event loop."""
        return PatientSource(self.source, self.io_timeout)

    def load_trust(self, trust_self: bool | None = None) -> TrustOptions:
        """The trust policy; raises UsageError as ``trust_options.load_trust``.

        Args:
            trust_self: whether the image may be trusted by itself; None: as the options and the environment say.
        """
        return load_trust(
            self.given, self.hash_offset, self.given.get("trust_self") if trust_self is None else trust_self
        )

    def load_keys(self, trust: TrustOptions, may_ask: bool = True) -> Keys:
        """The keys that open it; hardens the process, and raises UsageError, as ``key_options.load_keys``.

        Args:
            trust: an image that it does not cover is refused before anybody is asked for a passphrase.

        Raises:
            NotTrusted, FormatError, IntegrityError, ImageReadError, WrongKey: as ``check_before_asking``.
        """
        return load_keys(self.given, self.patient_source, may_ask, partial(self._check_before_asking, trust))

    def _check_before_asking(self, trust: TrustOptions) -> None:
        # Only here: what it imports is needed by those alone who type a passphrase.
        from mystfuse.cli.check_before_asking import check_before_asking

        check_before_asking(self.source, trust, self.io_timeout)
