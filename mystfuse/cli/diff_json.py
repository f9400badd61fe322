"""What ``mystfuse diff --json`` prints: ``docs/schemas/diff.json``."""

from __future__ import annotations

import os
import stat
from typing import Any

from mystfuse.cli.diff_text import Targets
from mystfuse.cli.text import file_type
from mystfuse.tree.diff.change import Aspect, Change, Kind
from mystfuse.tree.diff.content_changes import ContentChange
from mystfuse.tree.diff.statistics import Statistics
from mystfuse.tree.diff.view import Node


def change_document(change: Change, targets: Targets | None, content: ContentChange | None) -> dict[str, Any]:
    """One change."""
    document: dict[str, Any] = {"path": os.fsdecode(change.path), "change": change.kind.value}
    if change.old_path is not None:
        document["old_path"] = os.fsdecode(change.old_path)
    document["differs"] = [aspect.value for aspect in Aspect if aspect in change.aspects]
    for side, node in (("old", change.old), ("new", change.new)):
        document[side] = None if node is None else _node_document(node)
    if targets is not None:
        document["old"]["target"], document["new"]["target"] = map(os.fsdecode, targets)
    if content is not None:
        if content.lines is None:
            document["blocks"] = {"differing": content.differing, "all": content.blocks}
        else:
            document["text"] = os.fsdecode(b"".join(content.lines))
    return document


def _node_document(node: Node) -> dict[str, Any]:
    document: dict[str, Any] = {
        "type": file_type(node.mode),
        "mode": f"{stat.S_IMODE(node.mode):04o}",
        "uid": node.uid,
        "gid": node.gid,
        "size": node.size,
        "links": node.nlink,
        "mtime_ns": node.mtime_ns,
    }
    if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
        document |= {"major": os.major(node.rdev), "minor": os.minor(node.rdev)}
    return document


def statistics_document(statistics: Statistics) -> dict[str, Any]:
    """Counts and bytes."""
    return {kind.value: {"paths": statistics.paths[kind], "bytes": statistics.size[kind]} for kind in Kind} | {
        "differs": {aspect.value: statistics.aspects[aspect] for aspect in Aspect}
    }
