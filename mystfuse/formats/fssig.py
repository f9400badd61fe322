"""fssig: the 4096-byte signature block that ends every image.

Source of the layout: Mystikos, ``include/myst/fssig.h``. Everything is little-endian and packed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mystfuse.errors import FormatError, UnsupportedFeature

FSSIG_SIZE = 4096
FSSIG_MAGIC = 0xF55198A153624D38
FSSIG_VERSION = 1
MAX_SIGNATURE_SIZE = 1024

# magic, version, hash_offset, root_hash, signer, signature, signature_size
_LAYOUT = struct.Struct("<QQQ32s32s1024sQ")


def has_fssig_magic(data: bytes) -> bool:
    """Whether ``data`` starts like an fssig; says nothing about the rest."""
    return data[:8] == FSSIG_MAGIC.to_bytes(8, "little")


@dataclass(frozen=True, slots=True)
class Fssig:
    """The place of the hash tree, its root hash, and the signature over that. Untrusted until ``trust`` has decided."""

    hash_offset: int
    """Byte offset of the verity superblock: also the number of bytes that the tree covers."""
    root_hash: bytes
    """32 bytes: the SHA-256 root of the tree."""
    signer: bytes = bytes(32)
    """SHA-256 of the signer's RSA modulus (big-endian, no leading zero byte); all zero when unsigned."""
    signature: bytes = b""
    """RSASSA-PKCS1-v1_5 with SHA-256 where the digest is the root hash itself; empty when unsigned."""

    @property
    def is_signed(self) -> bool:
        return bool(self.signature)

    @classmethod
    def parse(cls, data: bytes) -> Fssig:
        """Parse the last 4096 bytes of an image, which are unverified.

        Raises:
            FormatError: wrong length, magic, or an invalid field.
            UnsupportedFeature: a version other than 1.
        """
        if len(data) != FSSIG_SIZE:
            raise FormatError(f"fssig is {len(data)} bytes long, not {FSSIG_SIZE}")
        magic, version, hash_offset, root_hash, signer, signature, signature_size = _LAYOUT.unpack_from(data)
        if magic != FSSIG_MAGIC:
            raise FormatError(f"no fssig: magic is {magic:016x}, not {FSSIG_MAGIC:016x}")
        if version != FSSIG_VERSION:
            raise UnsupportedFeature(f"fssig version {version}; only version {FSSIG_VERSION} is known")
        if signature_size > MAX_SIGNATURE_SIZE:
            raise FormatError(f"fssig signature_size is {signature_size}, more than {MAX_SIGNATURE_SIZE}")
        if not 0 < hash_offset < 1 << 63:
            raise FormatError(f"fssig hash_offset {hash_offset} is impossible")
        return cls(hash_offset, root_hash, signer, signature[:signature_size])

    def pack(self) -> bytes:
        """The 4096 bytes to write at the end of an image."""
        if len(self.root_hash) != 32 or len(self.signer) != 32 or len(self.signature) > MAX_SIGNATURE_SIZE:
            raise ValueError("fssig fields have the wrong length")
        packed = _LAYOUT.pack(
            FSSIG_MAGIC,
            FSSIG_VERSION,
            self.hash_offset,
            self.root_hash,
            self.signer,
            self.signature,
            len(self.signature),
        )
        return packed.ljust(FSSIG_SIZE, b"\0")

    def fields(self) -> dict[str, str | int | None]:
        """The fields by name, in the order and spelling of the original's ``myst fssig``."""
        return {
            "magic": f"{FSSIG_MAGIC:016x}",
            "version": FSSIG_VERSION,
            "hash_offset": self.hash_offset,
            "root_hash": self.root_hash.hex(),
            "signer": self.signer.hex() if any(self.signer) else None,
            "signature": self.signature.hex() if self.signature else None,
            "signature_size": len(self.signature),
        }
