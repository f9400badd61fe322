"""Every target with its seeds, its stored inputs, and inputs of hypothesis; ``scripts/fuzz`` runs them for longer,
guided by coverage."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.harness import Choices, InvariantBroken, Target, bounded
from tests.fuzz.targets import TARGETS

EXAMPLES = 60
"""Examples of hypothesis for each target."""


@pytest.fixture(params=TARGETS.values(), ids=TARGETS.keys())
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = request.param
    return found


@pytest.mark.logs(r"^mystfuse\.ext2", r"marked as having errors")
def test_seeds_and_stored_inputs_break_nothing(target: Target) -> None:
    inputs = target.seeds() + [path.read_bytes() for path in target.stored()]
    assert inputs
    for data in inputs:
        assert len(data) <= target.max_length
        try:
            target.run(data)
        except Exception as error:
            error.add_note(f"input {data.hex()}")
            raise


@pytest.mark.logs(r"^mystfuse\.ext2", r"marked as having errors")
def test_inputs_of_hypothesis_break_nothing(target: Target) -> None:
    seeds = target.seeds()
    length = st.binary(max_size=min(target.max_length, 400))
    # Well-formed inputs with one change.
    changed = st.builds(_overwritten, st.sampled_from(seeds), st.integers(0, 1 << 16), st.binary(max_size=8))

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(length | changed)
    def run(data: bytes) -> None:
        target.run(data[: target.max_length])

    run()


def _overwritten(data: bytes, position: int, part: bytes) -> bytes:
    position %= len(data) + 1
    return data[:position] + part + data[position + len(part) :]


def test_a_target_complains_of_what_takes_long() -> None:
    with pytest.raises(InvariantBroken, match="one input takes"), bounded(0.01):
        sum(range(3_000_000))


def test_choices_mean_something_behind_the_end_of_the_input() -> None:
    choices = Choices(b"\x05\x07")
    assert (choices.below(4), choices.number(2), choices.take(2), bool(choices)) == (1, 7, b"\0\0", False)
    assert choices.pick("abc") == "a" and choices.nasty(2, 5) == 0
    kinds = {Choices(bytes([kind, 3, 4])).nasty(2, 5) for kind in range(14)}
    assert {0, 1, 2, 0xFFFF, 0xFFFE, 0x8000, 0x7FFF, 0x8001, 6, 4, 10, 0x0403, 5 ^ 8} <= kinds
