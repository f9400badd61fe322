"""The user's keys: to open an encrypted image, or to make one; and deriving keys from passphrases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mystfuse.crypto.kdf_limit import KdfLimit
from mystfuse.crypto.secret import Secret
from mystfuse.errors import MystfuseError, WrongKey
from mystfuse.system.memory import available_memory

if TYPE_CHECKING:
    from mystfuse.crypto.derivation_process import Deriver
    from mystfuse.formats.luks import Argon2, Pbkdf2

MASTER_KEY_SIZE = 64
"""Bytes of the master key of the images we make: two AES-256 keys for XTS, as the original's."""
MIN_PASSPHRASE = 14
"""Characters (of UTF-8): the original's rule for new images."""


@dataclass(slots=True)
class Keys:
    """The key to open an encrypted image: one of the two, or none."""

    master_key: Secret | None = None
    """The master (volume) key as its file has it: binary, or hex digits."""
    passphrase: Secret | None = None
    origin: str = ""
    """Its source, if the user did not name it."""
    limit: KdfLimit = KdfLimit()  # noqa: RUF009  # it is frozen
    """The limit on deriving keys from it."""
    deriver: Deriver | None = None
    """The deriver, once it has been started."""

    def start_deriver(self) -> Deriver:
        """Start the deriver, if there is none: early, before there are threads and confinement."""
        if self.deriver is None:
            # Only here: trio takes long to import.
            from mystfuse.crypto.derivation_process import Deriver

            self.deriver = Deriver(self.limit)
        return self.deriver

    async def end_deriver(self) -> None:
        """End the deriver, and its derivation; not cancellable."""
        deriver, self.deriver = self.deriver, None
        if deriver is not None:
            await deriver.close()

    def kill_deriver(self) -> None:
        """The same without an event loop, for one that has not been asked for anything."""
        deriver, self.deriver = self.deriver, None
        if deriver is not None:
            deriver.kill()

    def __bool__(self) -> bool:
        return self.master_key is not None or self.passphrase is not None

    def lock(self) -> None:
        """Keep them out of swap; repeat this after a fork."""
        for secret in (self.master_key, self.passphrase):
            if secret is not None:
                secret.lock()

    def wipe(self) -> None:
        """Overwrite them."""
        for secret in (self.master_key, self.passphrase):
            if secret is not None:
                secret.wipe()


@dataclass(frozen=True, slots=True)
class Encryption:
    """How to encrypt a new image."""

    master_key: Secret
    """64 bytes."""
    passphrase: Secret | None = None
    """Opens key slot 0; without it there is no active slot."""
    luks_version: int = 1

    def wipe(self) -> None:
        """Overwrite both."""
        self.master_key.wipe()
        if self.passphrase is not None:
            self.passphrase.wipe()

    def check(self, key_name: str) -> None:
        """Raise WrongKey unless both are usable; ``key_name`` is the master key's name in messages."""
        key = self.master_key.view
        if len(key) != MASTER_KEY_SIZE:
            raise WrongKey(
                f"{key_name}: {len(key)} bytes, but a master key has {MASTER_KEY_SIZE} "
                f"(umask 077; head -c {MASTER_KEY_SIZE} /dev/urandom > KEYFILE makes one)"
            )
        if key[: MASTER_KEY_SIZE // 2] == key[MASTER_KEY_SIZE // 2 :]:
            raise WrongKey(f"{key_name}: its two halves are the same, which XTS must not have")
        if self.passphrase is not None:
            check_passphrase(self.passphrase)


def check_passphrase(passphrase: Secret) -> None:
    """Raise WrongKey if a passphrase is too short for a new image."""
    # Characters, not bytes: UTF-8's continuation bytes do not count.
    characters = sum(byte & 0xC0 != 0x80 for byte in passphrase.view)
    if characters < MIN_PASSPHRASE:
        raise WrongKey(f"the passphrase has {characters} characters; {MIN_PASSPHRASE} are needed")


def derive_key(kdf: Pbkdf2 | Argon2, passphrase: Secret, length: int) -> Secret:
    """The ``length`` bytes that a key derivation makes from a passphrase.

    Raises:
        MystfuseError: it needs more memory than there is.
    """
    # Only here: cryptography takes 7 ms to import, and headers of LUKS 4.
    from mystfuse.crypto.key_derivation import derive_argon2, derive_pbkdf2
    from mystfuse.formats.luks import Pbkdf2

    if isinstance(kdf, Pbkdf2):
        return derive_pbkdf2(kdf.hash_name, passphrase.view, kdf.salt, kdf.iterations, length)
    try:
        if kdf.memory << 10 > available_memory():
            raise MemoryError
        return derive_argon2(kdf.variant, passphrase.view, kdf.salt, kdf.time, kdf.memory, kdf.cpus, length)
    except MemoryError:
        raise MystfuseError(f"the passphrase needs more memory than there is ({kdf})") from None
