"""A mount's status as Prometheus takes it: ``.mystfuse/metrics``, and ``mystfuse status --prometheus``.

The text format 0.0.4 (Prometheus's "Exposition formats"), which node_exporter's textfile collector reads too. Names
follow its "Metric and label naming": base units, ``_total`` behind counters, ``_info`` behind a constant 1 whose labels
say what does not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class _Sample(NamedTuple):
    """Values of a family: the field of the status, and the label that tells them from the family's others. A field
    with numbers by kind makes a value for each, with the label ``kind``."""

    field: str
    label: tuple[str, str] | None = None


class _Family(NamedTuple):
    name: str
    kind: str
    help: str
    samples: tuple[_Sample, ...]


_INFO_LABELS = ("version", "trust", "root_hash", "signer", "cipher", "filesystem_uuid")
"""Fields of the status that do not change; those without a value are left out."""

_FAMILIES = (
    _Family("start_time_seconds", "gauge", "When it was mounted, in seconds since 1970.", (_Sample("start_time"),)),
    _Family("read_only", "gauge", "Whether writes are refused.", (_Sample("read_only"),)),
    _Family("changes_total", "counter", "Requests that have changed something.", (_Sample("changes"),)),
    _Family("overlay_written_bytes", "gauge", "What has been written, in whole blocks.", (_Sample("overlay_written"),)),
    _Family("overlay_used_bytes", "gauge", "Memory that writes take, tables included.", (_Sample("overlay_used"),)),
    _Family("overlay_limit_bytes", "gauge", "Memory that writes may take.", (_Sample("overlay_limit"),)),
    _Family("overlay_store_used_bytes", "gauge", "Writes in the store on disk.", (_Sample("overlay_store_used"),)),
    _Family("unlinked_inodes", "gauge", "Removed files that are still open.", (_Sample("unlinked_inodes"),)),
    _Family("image_read_bytes_total", "counter", "Bytes read from the image.", (_Sample("bytes_fetched"),)),
    _Family("image_read_failures_total", "counter", "Reads of the image that failed.", (_Sample("read_failures"),)),
    _Family(
        "verified_blocks_total",
        "counter",
        "Blocks compared with the hash tree and found right.",
        (_Sample("blocks_verified", ("kind", "data")), _Sample("hash_blocks_verified", ("kind", "hash"))),
    ),
    _Family("damaged_blocks_total", "counter", "Blocks that the hash tree refused.", (_Sample("blocks_failed"),)),
    _Family(
        "mended_blocks_total",
        "counter",
        "Blocks that were refused, and right when they were fetched again.",
        (_Sample("blocks_mended"),),
    ),
    _Family("fetcher_total", "counter", "What the fetcher of an image elsewhere has counted.", (_Sample("fetcher"),)),
    _Family("decrypted_bytes_total", "counter", "Bytes decrypted.", (_Sample("bytes_decrypted"),)),
    _Family("cache_hits_total", "counter", "Metadata blocks found in memory.", (_Sample("cache_hits"),)),
    _Family("cache_misses_total", "counter", "Metadata blocks not found in memory.", (_Sample("cache_misses"),)),
    _Family(
        "requests_total",
        "counter",
        "Requests of the kernel that the fast path answered, or left to Python.",
        (_Sample("requests_answered", ("by", "fastpath")), _Sample("requests_forwarded", ("by", "python"))),
    ),
)


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class MountState(NamedTuple):
    """A mount, and its status; None if it does not answer."""

    mountpoint: str
    image: str
    status: Mapping[str, Any] | None


def metrics(mounts: Iterable[MountState]) -> bytes:
    """The metrics of some mounts, in UTF-8, each with the labels ``mountpoint`` and ``image``.

    What a status lacks, or has as something else than a number (an older version's, or another program's), is left
    out. ``mystfuse_up`` says whether there is one. Of mounts with the same labels, which lie on top of each other, one
    that answers counts: samples must differ in their labels.
    """
    by_name: dict[tuple[str, str], MountState] = {}
    for mount in mounts:
        if mount.status is not None or (mount.mountpoint, mount.image) not in by_name:
            by_name[mount.mountpoint, mount.image] = mount
    known = list(by_name.values())
    lines: list[str] = []

    def add(name: str, kind: str, text: str, samples: list[str]) -> None:
        if samples:
            lines.extend((f"# HELP mystfuse_{name} {text}", f"# TYPE mystfuse_{name} {kind}", *samples))

    ups = [_line("up", labels_of(mount), mount.status is not None) for mount in known]
    add("up", "gauge", "Whether the mount answers.", ups)
    infos = [
        _line("mount_info", labels_of(mount) | _info_of(mount.status), 1) for mount in known if mount.status is not None
    ]
    add("mount_info", "gauge", "What is mounted, and why it is trusted.", infos)
    for family in _FAMILIES:
        samples: list[str] = []
        for mount in known:
            for field, label in family.samples:
                labels = labels_of(mount) | dict([label] if label else [])
                value = (mount.status or {}).get(field)
                by_kind = value.items() if isinstance(value, dict) else [(None, value)]
                for kind, number in by_kind:
                    if isinstance(number, (int, float)):
                        samples.append(_line(family.name, labels | ({"kind": kind} if kind else {}), number))
        add(family.name, family.kind, family.help, samples)
    return "".join(f"{line}\n" for line in lines).encode()


def labels_of(mount: MountState) -> dict[str, str]:
    """The labels of every metric of a mount."""
    return {"mountpoint": mount.mountpoint, "image": mount.image}


def _info_of(status: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name in _INFO_LABELS if isinstance(value := status.get(name), str)}


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
    return f"mystfuse_{name}{{{shown}}} {int(value) if isinstance(value, bool) else value}"


def _escape(text: str) -> str:
    """A label's value. Bytes of a path that are no UTF-8 are shown as Python writes them, ``\\udcNN``."""
    return text.encode(errors="backslashreplace").decode().translate(_ESCAPES)
