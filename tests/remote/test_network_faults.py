"""Networks and servers that fail in every way: bytes come right or not at all, in time, and they come whenever asking
again within the time-out can get them.

``MYSTFUSE_NETWORK_FAULTS`` is how many schedules are run; each begins with the next seed.
"""

from __future__ import annotations

import os
import resource
from collections import Counter

import pytest

import mystfuse
from mystfuse.errors import IntegrityError, innermost
from tests.support.certificates import Authority, make_authority
from tests.support.network_chain import ChainRun, FarImage, Trouble, far_away
from tests.support.network_runs import AsksOnce, Run, Tally

SCHEDULES = int(os.environ.get("MYSTFUSE_NETWORK_FAULTS", "60"))


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """The one that clients trust, and another."""
    return make_authority(tmp_path_factory.mktemp("authority")), make_authority(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> FarImage:
    return FarImage.make(tmp_path_factory.mktemp("image"))


def test_a_failing_network_costs_time_and_nothing_else(authorities: tuple[Authority, Authority]) -> None:
    tally, before = Tally(), 0
    for seed in range(SCHEDULES):
        run = Run(seed, *authorities)
        run.run()
        tally.add(run.tally)
        if seed == SCHEDULES // 4:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{SCHEDULES} schedules, {grown:.0f} MiB more after the first quarter, {tally}")
    assert tally.right > 4 * SCHEDULES and sum(tally.done.values()) > SCHEDULES
    assert grown < 64


def test_a_client_that_asks_once_fails_these_schedules(authorities: tuple[Authority, Authority]) -> None:
    """The judge can tell: what it demands is not what any client does."""
    verdicts: Counter[str] = Counter()
    for seed in range(30):
        try:
            Run(seed, *authorities, AsksOnce).run()
            verdicts["passed"] += 1
        except* AssertionError as group:
            verdicts[str(innermost(group))[2:8]] += 1
    assert verdicts["failed"] > 5 and verdicts["hung'"] + verdicts["hung',"] > 0, verdicts


@pytest.mark.logs("verity: ", "fetcher: ", "reader: ")
def test_files_of_an_image_behind_a_failing_network_are_right(image: FarImage) -> None:
    """Server, fetcher, hash tree and file system together."""
    tally = Tally()
    for seed in range(max(10, SCHEDULES // 6)):
        run = ChainRun(seed, image)
        run.run()
        tally.add(run.tally)
    print(f"\n{tally}")
    assert tally.right > 0 and sum(tally.done.values()) > SCHEDULES // 6


@pytest.mark.logs("verity: ")
def test_bytes_that_are_always_wrong_are_an_error(image: FarImage) -> None:
    with far_away(image.content) as far, mystfuse.Image(far.url, roothashes=[image.root_hash]) as opened:
        far.trouble = Trouble(("flip",), 1000, 1.0, flips_all=True)
        with pytest.raises(IntegrityError), opened.open("large", "rb") as file:
            file.seek(20 << 20)
            file.read(1)
        far.trouble = Trouble((), 0, 0.0, flips_all=False)
        with opened.open("large", "rb") as file:
            file.seek(20 << 20)
            assert file.read(5000) == (image.source / "large").read_bytes()[20 << 20 :][:5000]
