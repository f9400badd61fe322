"""What a named damage is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.corruption.bases import Layout


@dataclass(frozen=True)
class Case:
    """One damage and what has to come of it."""

    name: str
    what: str
    expected: tuple[str, ...]
    damage: Callable[[Layout], None]
    base: str
    is_dangerous: bool
    """Whether the kernel had better not be asked."""

    def make(self, bases: dict[str, bytes]) -> bytes:
        layout = Layout(bases[self.base])
        self.damage(layout)
        return bytes(layout.data)


CASES: dict[str, Case] = {}


def case(
    *expected: str, base: str = "1k", is_dangerous: bool = False
) -> Callable[[Callable[[Layout], None]], Callable[[Layout], None]]:
    """Enter a damage into ``CASES``, under its function's name."""

    def enter(damage: Callable[[Layout], None]) -> Callable[[Layout], None]:
        name = damage.__name__
        assert name not in CASES and damage.__doc__
        CASES[name] = Case(name, damage.__doc__.strip().rstrip("."), expected, damage, base, is_dangerous)
        return damage

    return enter
