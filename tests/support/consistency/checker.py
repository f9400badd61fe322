"""The judge: finds every result of a reader that was not true at any moment between its call's start and its end."""

from __future__ import annotations

import errno
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from tests.support.consistency.model import PAST_END, Attributes, Impossible, Model, Node
from tests.support.consistency.records import FIRST_NAME, NAMES, How, Kind, Layout, Record
from tests.support.consistency.registers import Order, Register

SHOWN = 5
"""Violations described; all are counted."""


class Checker:
    """Judges the records of one run.

    Args:
        forgiven: errnos with which a writer's call may fail.
    """

    def __init__(self, forgiven: frozenset[int] = frozenset()) -> None:
        self._model, self._forgiven = Model(forgiven), forgiven
        self._orders: defaultdict[object, Order] = defaultdict(Order)
        self.counts: Counter[str] = Counter()
        """Calls by kind; of them ``violations``, ``out of order`` and ``forgiven``."""
        self.descriptions: list[str] = []

    def check(self, records: Iterable[Record]) -> None:
        """Judge all records of a run, given by increasing start."""
        calls = []
        for record in records:
            self.counts[Kind(record.kind).name] += 1
            if record.kind >= Kind.SEE_CELL:
                calls.append(record)
                continue
            self.counts["forgiven"] += record.error in self._forgiven
            try:
                self._model.apply(record)
            except Impossible as error:
                self._fail("violations", str(error), record)
        checks: dict[int, Callable[[Record], None]] = {
            Kind.SEE_CELL: self._check_cell,
            Kind.SEE_ATTRIBUTES: self._check_attributes,
            Kind.SEE_XATTR: self._check_xattr,
            Kind.SEE_TARGET: self._check_target,
            Kind.SEE_OPENED: self._check_opened,
            Kind.SEE_LISTING: self._check_listing,
        }
        for call in calls:
            checks[call.kind](call)

    @property
    def total(self) -> int:
        return sum(self.counts[kind.name] for kind in Kind)

    def _fail(self, what: str, why: str, call: Record, *registers: Register[Any]) -> None:
        self.counts[what] += 1
        if len(self.descriptions) < SHOWN:
            stories = [register.story(call.start, call.end) for register in registers]
            self.descriptions.append("\n".join([f"{what}: {why}: {call}", *stories]))

    def _judge(
        self, call: Record, what: str, register: Register[Any], fits: Callable[[Any], bool], domain: object
    ) -> bool:
        """Whether the call saw a state of the register that fits; reports if not.

        Args:
            domain: calls of one domain see the states in their order.
        """
        choices = [index for index in register.window(call.start, call.end) if fits(register.states[index])]
        if not choices:
            self._fail("violations", what, call, register)
            return False
        if not self._orders[domain].take(choices, call.start, call.end):
            self._fail("out of order", what, call, register)
        return True

    def _check_cell(self, call: Record) -> None:
        if call.error:
            self._fail("violations", "reading failed", call)
            return
        number, length = call.values[:2]
        node = self._model.node(call.object)
        register = node.cells[number]
        size = Layout["SMALL_CELL"] if call.object % Layout["FILES"] else Layout["PAGE_CELL"]
        if length not in (0, size):
            self._fail("violations", "part of a cell", call, register)
            return
        seen = {PAST_END} if not length else set(call.values[2:6])
        possible = set(register.during(call.start, call.end))
        for version in seen:
            # A reader that has seen the old size may find the space behind the new one, emptied.
            if version not in possible and not (version == 0 and PAST_END in possible):
                self._fail("violations", f"version {version} of cell {number}", call, register)
                return
        if len(seen) == 1 and 0 not in seen and PAST_END not in seen:
            domain = (register, call.how == How.BY_DIRECT)
            self._judge(call, f"cell {number}", register, lambda state: state in seen, domain)

    def _nodes(self, call: Record, ino: int | None = None) -> list[Node]:
        """The inodes that the object's name may have led to."""
        found = []
        for node in self._model.names[call.object].during(call.start, call.end):
            if node is not None and (ino is None or node.ino == ino) and node not in found:
                found.append(node)
        return found

    def _check_name(self, call: Record, ino: int | None) -> bool:
        """Whether the name can have been absent (``ino`` None), or of this inode."""
        register = self._model.names[call.object]
        what = "absent" if ino is None else f"inode {ino}"

        def fits(node: Node | None) -> bool:
            return node is None if ino is None else node is not None and node.ino == ino

        return self._judge(call, what, register, fits, (register, call.how))

    def _is_absent(self, call: Record) -> bool:
        """Judges a call that failed because there is no such name."""
        if call.error == errno.ENOENT:
            self._check_name(call, None)
        return call.error == errno.ENOENT

    def _check_fields(self, call: Record, nodes: list[Node], seen: dict[str, int]) -> None:
        """Some inode had each field's value, maybe each at another moment."""
        wrong = []
        for node in nodes:
            states = list(node.history.during(call.start, call.end))
            wrong = [name for name, value in seen.items() if not any(_has(state, name, value) for state in states)]
            if not wrong:
                for name, value in seen.items():
                    self._judge(
                        call, name, node.history, lambda state, name=name, value=value: _has(state, name, value),
                        (node, name, call.how),
                    )  # fmt: skip
                return
        self._fail("violations", ", ".join(wrong), call, *(node.history for node in nodes))

    def _check_attributes(self, call: Record) -> None:
        if self._is_absent(call):
            return
        if call.error:
            self._fail("violations", "stat failed", call)
            return
        ino, mode, links, size, owner, time = call.values
        if self._check_name(call, ino):
            seen = {"mode": mode, "links": links, "size": size, "owner": owner, "time": time}
            self._check_fields(call, self._nodes(call, ino), seen)

    def _check_xattr(self, call: Record) -> None:
        if self._is_absent(call):
            return
        # A symbolic link has none: EPERM.
        if call.error and call.error != errno.EPERM:
            self._fail("violations", "getxattr failed", call)
            return
        nodes = self._nodes(call)
        if call.error:
            nodes = [node for node in nodes if stat.S_ISLNK(node.now.mode)]
        self._check_fields(call, nodes, {"xattr": call.values[0]})

    def _check_target(self, call: Record) -> None:
        if self._is_absent(call):
            return
        register = self._model.names[call.object]

        def fits(node: Node | None) -> bool:
            if node is None:
                return False
            if call.error:
                return call.error == errno.EINVAL and not stat.S_ISLNK(node.now.mode)
            return stat.S_ISLNK(node.now.mode) and node.target == call.values[0]

        self._judge(call, "target", register, fits, (register, "target"))

    def _check_opened(self, call: Record) -> None:
        if self._is_absent(call):
            return
        if call.error:
            is_link = any(stat.S_ISLNK(node.now.mode) for node in self._nodes(call))
            if call.error != errno.ELOOP or not is_link:
                self._fail("violations", "open failed", call, self._model.names[call.object])
            return
        ino, first, later, mode, links, size = call.values
        nodes = self._nodes(call, ino)
        if not nodes:
            self._fail("violations", f"opened inode {ino}", call, self._model.names[call.object])
        elif first not in (later, 0):
            self._fail("violations", "an open file changed", call, *(node.history for node in nodes))
        else:
            self._check_fields(call, nodes, {"content": later, "mode": mode, "links": links, "size": size})

    def _check_listing(self, call: Record) -> None:
        if call.error:
            self._fail("violations", "listing failed", call)
            return
        present, twice, fillers, some, ino = call.values[:5]
        if fillers != Layout["FILLERS"]:
            self._fail("violations", f"{fillers} names that never change", call)
        for index in range(NAMES):
            register = self._model.names[FIRST_NAME + call.object * NAMES + index]
            states = list(register.during(call.start, call.end))
            is_present = bool(present >> index & 1)
            if not any((node is not None) == is_present for node in states):
                self._fail("violations", f"name {index} {'present' if is_present else 'absent'}", call, register)
            if twice >> index & 1 and len(states) < 2:
                self._fail("violations", f"name {index} twice", call, register)
            if index + 1 == some and not any(node is not None and node.ino == ino for node in states):
                self._fail("violations", f"name {index} has inode {ino}", call, register)


def _has(state: Attributes, name: str, value: int) -> bool:
    known = getattr(state, name)
    return known is None or known == value
