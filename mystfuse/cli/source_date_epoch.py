"""SOURCE_DATE_EPOCH (reproducible-builds.org): no time stamps later than this one."""

from __future__ import annotations

import os
import re

from mystfuse.errors import UsageError


def source_date_epoch() -> int | None:
    """Seconds since 1970, from the environment; None if it does not say; raises UsageError if it is no number."""
    value = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not value:
        return None
    if not re.fullmatch(r"[0-9]{1,10}", value):
        raise UsageError(f"SOURCE_DATE_EPOCH={value}: not a number of seconds since 1970")
    return int(value)
