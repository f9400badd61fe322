"""``NumberSet`` is a set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mystfuse.system.number_set import NumberSet, runs_of_bits

NUMBERS = st.integers(0, 70_000)
RUNS = st.lists(st.tuples(NUMBERS, st.integers(0, 40_000)), max_size=4)


@given(st.lists(NUMBERS), RUNS, st.lists(NUMBERS), RUNS)
def test_it_has_what_was_added(
    some: list[int], runs: list[tuple[int, int]], others: list[int], other_runs: list[tuple[int, int]]
) -> None:
    sets: list[tuple[NumberSet, set[int]]] = []
    for numbers, parts in ((some, runs), (others, other_runs)):
        found, expected = NumberSet(), set[int]()
        for number in numbers:
            assert found.add(number) is (number not in expected)
            expected.add(number)
        for first, count in parts:
            found.add_run(first, count)
            expected.update(range(first, first + count))
        assert list(found) == sorted(expected)
        assert all((number in found) == (number in expected) for number in (*numbers, *others, 0, 32767, 32768, 10**9))
        sets.append((found, expected))
    (one, expected_one), (two, expected_two) = sets
    assert list(one.without(two)) == sorted(expected_one - expected_two)


@given(RUNS, NUMBERS, st.integers(0, 80_000))
def test_bits_are_a_window(runs: list[tuple[int, int]], first: int, count: int) -> None:
    found = NumberSet()
    for start, length in runs:
        found.add_run(start, length)
    members = {number for start, length in runs for number in range(start, start + length)}
    bits = found.bits(first, count)
    expected = members & set(range(first, first + count))
    assert bits.bit_count() == len(expected)
    assert {
        number for start, length in runs_of_bits(bits, first) for number in range(start, start + length)
    } == expected
    ends = [start for start, _ in runs_of_bits(bits, first)]
    assert ends == sorted(ends)
