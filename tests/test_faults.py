"""Storage that lies: whatever it does, whoever reads gets the right bytes or an error, in time; and everything is right
again when it behaves.

``MYSTFUSE_FAULT_SCHEDULES`` is how many schedules are run below FUSE, ``MYSTFUSE_FAULT_MOUNTS`` how many under a real
mount; each begins with the next seed.
"""

from __future__ import annotations

import os
import resource

import pytest
from fault_schedules import KINDS, Schedule, Subject, Tally, make_subject

SCHEDULES = int(os.environ.get("MYSTFUSE_FAULT_SCHEDULES", "240"))


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    return {kind: make_subject(kind, tmp_path_factory.mktemp("subject")) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_lying_storage_costs_errors_and_nothing_else(kind: str, subjects: dict[str, Subject]) -> None:
    tally = Tally()
    first = [*KINDS].index(kind) * 1_000_000
    count = SCHEDULES // len(KINDS)
    before = 0
    for seed in range(first, first + count):
        schedule = Schedule(subjects[kind], seed)
        schedule.run()
        tally.add(schedule.tally)
        if seed == first + count // 4:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{kind}: {count} schedules, {grown:.0f} MiB more after the first quarter, {tally}")
    assert tally.right > count and sum(tally.errors.values()) > count
    assert grown < 64
