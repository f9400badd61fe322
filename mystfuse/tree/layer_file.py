"""A layer as a file: what has been written to a mount, with the digests by which images name it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mystfuse.archives.oci_layer import LayerStream
from mystfuse.image.progress import Progress
from mystfuse.tree.diff.written_changes import MountStates
from mystfuse.tree.layer import write_layer
from mystfuse.tree.layer_plan import plan_layer

WriteBytes = Callable[[bytes | bytearray], Awaitable[None]]
"""Takes the layer, piece by piece; raises MystfuseError or OSError."""


@dataclass(frozen=True, slots=True)
class MadeLayer:
    """A complete layer."""

    path: str
    """``-``: stdout."""
    media_type: str
    size: int
    """Bytes, of the compressed layer if it is compressed."""
    digest: str
    """``sha256:`` and hex digits, of these bytes."""
    diff_id: str
    """The same of the tar archive."""
    members: int
    """Names in it."""
    whiteouts: int
    """Names that are gone, and directories whose contents are."""
    omitted: Mapping[str, int]
    """What it lacks, and how often."""

    def document(self) -> dict[str, Any]:
        """For ``--json``: docs/schemas/commit.json."""
        return {
            "file": self.path,
            "media_type": self.media_type,
            "size": self.size,
            "digest": self.digest,
            "diff_id": self.diff_id,
            "members": self.members,
            "whiteouts": self.whiteouts,
            "omitted": dict(self.omitted),
        }


async def make_layer(
    states: MountStates, path: str, write: WriteBytes, latest_ns: int | None, progress: Progress
) -> MadeLayer:
    """Write what makes a mount's tree of its image's.

    Args:
        path: names the layer, and says by its end (``.gz``, ``.tgz``) whether it is compressed.
        latest_ns: later times of change are written as this one (SOURCE_DATE_EPOCH).

    Raises:
        MystfuseError: as the states, ``plan_layer`` and ``write``.
        OSError: as ``write``.
    """
    plan = await plan_layer(await states.changes(), states.old, states.new)
    pieces: list[bytes] = []
    stream = LayerStream(pieces.append, "gzip" if path.endswith((".gz", ".tgz")) else "none")

    async def write_out() -> None:
        for piece in pieces:
            await write(piece)
        pieces.clear()

    async def take(data: bytearray) -> None:
        stream.write(data)
        await write_out()

    with progress("writing the layer", plan.data_size) as advance:
        size = states.new.volume.superblock.size
        omitted = await write_layer(plan, states.new, take, latest_ns, size, advance)
        layer = stream.finish()
        await write_out()
    return MadeLayer(
        path,
        layer.descriptor.media_type,
        layer.descriptor.size,
        layer.descriptor.digest,
        layer.diff_id,
        len(plan.members),
        len(plan.whiteouts) + len(plan.opaque),
        Counter(omitted),
    )
