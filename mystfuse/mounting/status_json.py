"""The fields of ``.mystfuse/status.json``, which ``mystfuse status`` shows and SIGUSR1 logs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from mystfuse import __version__
from mystfuse.devices.joined_source import JoinedSource
from mystfuse.devices.source import Source
from mystfuse.fastpath.fast_path import NOTHING_DONE, Counts
from mystfuse.formats.verity import VeritySuperblock
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.image.pipeline import Pipeline
from mystfuse.system.confinement import Confinement
from mystfuse.trust.policy import Trust
from mystfuse.volume.volume import Volume


def status_source(
    trust: Trust,
    options: MountOptions,
    pipeline: Pipeline,
    volume: Volume,
    confinement: Confinement,
    started: float,
    fast_path: Callable[[], Counts | None],
    fetcher: Callable[[], dict[str, int] | None],
) -> Callable[[], dict[str, Any]]:
    """A function that gives the status as of when it is called.

    Args:
        started: when the daemon began, by ``time.monotonic``.
        fast_path: what the fast path has done until now; None where there is none.
        fetcher: what the fetcher has counted, when it was asked last; None of an image that is here.
    """
    start_time = round(time.time() - (time.monotonic() - started), 3)
    verity, reader, cache = pipeline.verity, pipeline.reader, volume.cache
    overlay, unlocked = volume.written, pipeline.unlocked

    def status() -> dict[str, Any]:
        counts = fast_path()
        done = counts or NOTHING_DONE
        return {
            "version": __version__,
            "pid": os.getpid(),
            "image": options.fsname,
            "mountpoint": options.mountpoint,
            "uptime": round(time.monotonic() - started, 3),
            "read_only": volume.overlay is None,
            "landlock": confinement.landlock or None,
            "seccomp": confinement.has_filter,
            "empty_root": confinement.has_empty_root,
            "own_user": confinement.own_user,
            "root_hash": trust.root_hash.hex() if trust.root_hash else None,
            "hash_tree": None if verity is None else _tree_fields(verity.superblock),
            "trust": trust.reason.value,
            "trust_explanation": trust.explanation,
            "signer": trust.signer.hex() if trust.signer else None,
            "luks_version": unlocked.header.version if unlocked else None,
            "cipher": str(unlocked.header.cipher) if unlocked else None,
            "filesystem_uuid": str(volume.superblock.s_uuid),
            "block_size": volume.superblock.block_size,
            "fastpath": counts is not None,
            "requests_answered": done.answered,
            "requests_forwarded": done.forwarded,
            "bytes_fetched": reader.bytes_read + done.bytes_fetched,
            "read_failures": reader.failures,
            "blocks_verified": verity.blocks_verified if verity else 0,
            "hash_blocks_verified": verity.hash_blocks_verified if verity else 0,
            "blocks_failed": verity.blocks_failed if verity else 0,
            "bytes_decrypted": (unlocked.device.bytes_decrypted if unlocked else 0) + done.bytes_decrypted,
            "cache_hits": cache.hits,
            "cache_misses": cache.misses,
            "overlay_used": 0 if overlay is None else overlay.used,
            "overlay_limit": 0 if volume.overlay is None else volume.overlay.limit,
            "overlay_store_used": 0 if overlay is None else overlay.store_used,
            "unlinked_inodes": len(volume.orphans),
            "start_time": start_time,
            "changes": volume.changes_made,
            "overlay_written": 0 if overlay is None else max(overlay.written - volume.recovered_bytes, 0),
            "image_size": _size_of_image(reader.source),
            "blocks_mended": verity.blocks_mended if verity else 0,
            "fetcher": fetcher(),
        }

    return status


def _size_of_image(source: Source) -> int:
    """Bytes of the image's file, without its hash tree if that is in another."""
    return source.data_size if isinstance(source, JoinedSource) else source.size


def _tree_fields(superblock: VeritySuperblock) -> dict[str, Any]:
    """What a commit needs to make the same tree again."""
    return {
        "uuid": str(UUID(bytes=superblock.uuid)),
        "salt": superblock.salt.hex(),
        "algorithm": superblock.algorithm,
        "hash_type": superblock.hash_type,
        "data_size": superblock.data_size,
        "data_block_size": superblock.data_block_size,
        "hash_block_size": superblock.hash_block_size,
    }
