"""Operations on hostile file systems: those that fail must have changed nothing, and none may take long."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from mystfuse.errors import MystfuseError
from mystfuse.volume.volume import Volume


async def operate(volume: Volume, operation: Callable[[], Awaitable[object]], steps: int, label: str) -> int:
    """Run ``steps`` operations, and then free what has no name any more; returns how many failed.

    Long files are truncated in steps, each a transaction: the files must be short.
    """
    failed = 0
    for step in range(steps):
        started, before = time.process_time(), volume.changes
        try:
            await operation()
        except (OSError, MystfuseError):
            failed += 1
            assert volume.changes == before, f"{label}, step {step}: a failed operation has changed something"
        except Exception as error:
            error.add_note(f"{label}, step {step}")
            raise
        assert time.process_time() - started < 2, f"{label}, step {step}"
    for orphan in list(volume.orphans):
        await volume.release(orphan)
    return failed
