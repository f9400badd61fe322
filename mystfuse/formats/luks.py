"""The common part of both LUKS versions: the cipher, the place of the payload, and the key slots.

Sources: the LUKS1 On-Disk Format Specification 1.2.3 and the LUKS2 On-Disk Format Specification 1.1.1 (cryptsetup
project), and the kernel's Documentation/admin-guide/device-mapper/dm-crypt.rst for the names of ciphers.
"""

from __future__ import annotations

from dataclasses import dataclass

from mystfuse.errors import FormatError, UnsupportedFeature

SECTOR_SIZE = 512
"""Bytes that offsets in a LUKS1 header and initialization vectors are counted in."""
HASHES = {"sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64}
"""Bytes of digest by name."""
MAX_ITERATIONS = 100_000_000
"""PBKDF2 iterations, for each piece of the hash's size that is derived: about a minute. cryptsetup measures 2 seconds'
worth."""
MAX_ARGON2_MEMORY = 4 << 20
"""KiB: cryptsetup's limit."""
MAX_ARGON2_CPUS = 16
MAX_ARGON2_COST = 64 << 20
"""Passes times KiB: about a minute."""
_SECONDS_OF_MOST = 60
"""The speed assumed above: 1.7 million iterations and 1.1 GiB a second, on an older processor. The caller has the limit
for a whole header (``crypto.kdf_limit``)."""
MIN_DIGEST_SIZE, MAX_DIGEST_SIZE = 20, 64
"""Bytes: LUKS1 has 20, cryptsetup's LUKS2 what the hash gives."""
MAX_SALT_SIZE = 256
"""Bytes; cryptsetup makes 32."""
MAX_STRIPES = 1 << 16
"""The specifications know 4000 alone."""

_KEY_SIZES = {
    "xts-plain64": (32, 48, 64),
    "xts-plain": (32, 48, 64),
    "cbc-essiv:sha256": (16, 24, 32),
    "cbc-plain64": (16, 24, 32),
    "cbc-plain": (16, 24, 32),
    "ecb": (16, 24, 32),
    "ecb-plain64": (16, 24, 32),
    "ecb-plain": (16, 24, 32),
}
"""Bytes of key by mode of AES; those of XTS are two keys. qemu names an initialization vector for ECB too, which has
none; dm-crypt ignores it."""


@dataclass(frozen=True, slots=True)
class CipherSpec:
    """How sectors are encrypted: always AES."""

    chain_mode: str
    """``xts``, ``cbc`` or ``ecb``."""
    iv_mode: str
    """``plain64``, ``plain``, ``essiv:sha256``, or nothing for ``ecb``."""

    def __str__(self) -> str:
        """As dm-crypt writes it: ``aes-xts-plain64``."""
        return f"aes-{self._mode}"

    @property
    def _mode(self) -> str:
        return f"{self.chain_mode}-{self.iv_mode}" if self.iv_mode else self.chain_mode

    @property
    def key_sizes(self) -> tuple[int, ...]:
        """Possible key sizes in bytes."""
        return _KEY_SIZES[self._mode]

    @classmethod
    def parse(cls, name: str) -> CipherSpec:
        """Parse dm-crypt's name of a cipher.

        Raises:
            UnsupportedFeature: a cipher or mode that mystfuse does not have; the message names it.
        """
        algorithm, _, mode = name.partition("-")
        if algorithm != "aes" or mode not in _KEY_SIZES:
            known = ", ".join(f"aes-{mode}" for mode in _KEY_SIZES)
            raise UnsupportedFeature(f"LUKS cipher {name[:64]!r}; known are {known}")
        chain_mode, _, iv_mode = mode.partition("-")
        return cls(chain_mode, iv_mode)

    def check_key_size(self, key_size: int) -> None:
        """Raise FormatError for an impossible key size in bytes."""
        if key_size not in self.key_sizes:
            raise FormatError(f"LUKS: a key of {key_size} bytes for {self}")


@dataclass(frozen=True, slots=True)
class Pbkdf2:
    """Parameters of PBKDF2-HMAC (RFC 8018)."""

    hash_name: str
    salt: bytes
    iterations: int

    def __post_init__(self) -> None:
        check_hash(self.hash_name)
        _check_salt(self.salt)
        if not 1 <= self.iterations <= MAX_ITERATIONS:
            raise FormatError(f"LUKS: {self.iterations} PBKDF2 iterations; from 1 to {MAX_ITERATIONS} are accepted")

    def seconds(self, length: int) -> float:
        """The approximate seconds for deriving ``length`` bytes."""
        return self.iterations * -(-length // HASHES[self.hash_name]) / (MAX_ITERATIONS / _SECONDS_OF_MOST)

    @property
    def memory_size(self) -> int:
        """The memory that it takes in bytes."""
        return 0

    def check_cost(self, length: int) -> None:
        """Raise FormatError if deriving ``length`` bytes takes longer than an image may stall us."""
        if self.iterations * -(-length // HASHES[self.hash_name]) > MAX_ITERATIONS:
            raise FormatError(f"LUKS: {self.iterations} PBKDF2 iterations for {length} bytes take too long")

    def __str__(self) -> str:
        return f"PBKDF2 {self.hash_name}, {self.iterations} iterations"


@dataclass(frozen=True, slots=True)
class Argon2:
    """Parameters of Argon2 (RFC 9106)."""

    variant: str
    """``argon2id`` or ``argon2i``."""
    salt: bytes
    time: int
    """Passes."""
    memory: int
    """KiB."""
    cpus: int
    """Lanes."""

    def __post_init__(self) -> None:
        if self.variant not in ("argon2i", "argon2id"):
            raise UnsupportedFeature(f"LUKS2 key derivation {self.variant[:64]!r}")
        _check_salt(self.salt)
        if not 1 <= self.cpus <= MAX_ARGON2_CPUS or not 8 * self.cpus <= self.memory <= MAX_ARGON2_MEMORY:
            raise FormatError(
                f"LUKS2: {self.variant} with {self.cpus} lanes over {self.memory} KiB; "
                f"up to {MAX_ARGON2_CPUS} and {MAX_ARGON2_MEMORY} are accepted, and 8 KiB a lane are needed"
            )
        if not 1 <= self.time <= MAX_ARGON2_COST // self.memory:
            raise FormatError(
                f"LUKS2: {self.time} passes of {self.variant} over {self.memory} KiB; "
                f"from 1 to {MAX_ARGON2_COST // self.memory} are accepted"
            )
        if len(self.salt) < 8:
            raise FormatError(f"LUKS2: a salt of {len(self.salt)} bytes for {self.variant}, which wants 8")

    def seconds(self, length: int) -> float:
        """The approximate seconds for deriving, for any number of bytes."""
        return self.time * self.memory / (MAX_ARGON2_COST / _SECONDS_OF_MOST)

    @property
    def memory_size(self) -> int:
        """The memory that it takes in bytes."""
        return self.memory << 10

    def __str__(self) -> str:
        return f"{self.variant}, {self.time} passes over {-(-self.memory // 1024)} MiB"


@dataclass(frozen=True, slots=True)
class Keyslot:
    """The volume key, encrypted with a key derived from a passphrase."""

    number: int
    kdf: Pbkdf2 | Argon2
    key_size: int
    """Bytes of the volume key."""
    cipher: CipherSpec
    """Of the key material."""
    cipher_key_size: int
    """Bytes that ``kdf`` gives."""
    offset: int
    """Byte offset of the key material in the device."""
    stripes: int
    af_hash: str
    """Hash of the anti-forensic splitter."""
    priority: int = 1
    """2: tried first; 1: normal; 0: not tried."""

    def __post_init__(self) -> None:
        check_hash(self.af_hash)
        self.cipher.check_key_size(self.cipher_key_size)
        if isinstance(self.kdf, Pbkdf2):
            self.kdf.check_cost(self.cipher_key_size)
        if not 1 <= self.stripes <= MAX_STRIPES:
            raise FormatError(
                f"LUKS key slot {self.number}: {self.stripes} stripes; from 1 to {MAX_STRIPES} are accepted"
            )

    @property
    def material_size(self) -> int:
        """Bytes of key material: the volume key, expanded by the anti-forensic splitter."""
        return self.key_size * self.stripes


@dataclass(frozen=True, slots=True)
class KeyDigest:
    """The digest that distinguishes the right volume key from wrong ones."""

    kdf: Pbkdf2
    digest: bytes

    def __post_init__(self) -> None:
        # An empty one would fit every key, and comparing a long one would never end.
        if not MIN_DIGEST_SIZE <= len(self.digest) <= MAX_DIGEST_SIZE:
            raise FormatError(
                f"LUKS: a key digest of {len(self.digest)} bytes; {MIN_DIGEST_SIZE} to {MAX_DIGEST_SIZE} are accepted"
            )
        self.kdf.check_cost(len(self.digest))


@dataclass(frozen=True, slots=True)
class LuksHeader:
    """A LUKS header of either version."""

    version: int
    uuid: str
    cipher: CipherSpec
    key_sizes: tuple[int, ...]
    """Possible sizes of the volume key in bytes: one, unless no LUKS2 key slot states it."""
    payload_offset: int
    """Byte offset of the payload in the device."""
    payload_size: int | None
    """Bytes; None: up to the end of the device."""
    sector_size: int
    """Bytes that are encrypted as one unit."""
    iv_tweak: int
    """Added to the number of the 512-byte unit to make the initialization vector."""
    keyslots: tuple[Keyslot, ...]
    """The active ones."""
    digest: KeyDigest
    unusable: tuple[str, ...] = ()
    """Why we lack some of the slots."""

    def check_fits(self, device_size: int) -> int:
        """The size of the payload in bytes, on a device of ``device_size`` bytes.

        Raises:
            FormatError: payload or key material lie outside the device.
        """
        available = device_size - self.payload_offset
        size = available - available % self.sector_size if self.payload_size is None else self.payload_size
        if available <= 0 or not 0 < size <= available:
            raise FormatError(
                f"LUKS: the payload would be at bytes {self.payload_offset} to {self.payload_offset + size}, but only "
                f"{device_size} are there (truncated?)"
            )
        for slot in self.keyslots:
            if slot.offset + slot.material_size > device_size:
                raise FormatError(f"LUKS key slot {slot.number}: its key material lies outside the image")
        return size


def check_hash(name: str) -> None:
    """Raise UnsupportedFeature for a hash that mystfuse does not have."""
    if name not in HASHES:
        raise UnsupportedFeature(f"LUKS hash {name[:64]!r}; known are {', '.join(HASHES)}")


def _check_salt(salt: bytes) -> None:
    if len(salt) > MAX_SALT_SIZE:
        raise FormatError(f"LUKS: a salt of {len(salt)} bytes; up to {MAX_SALT_SIZE} are accepted")


def text_field(data: bytes) -> str:
    """A NUL-padded field of a header as text."""
    return data.split(b"\0", 1)[0].decode("ascii", "backslashreplace")
