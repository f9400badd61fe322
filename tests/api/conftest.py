"""A machine that only records which mounts a program makes."""

from __future__ import annotations

import pytest

from mystfuse.api import mount as mounting
from tests.support.cancelled_mounts import Machine


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(mounting, "OwnCommand", machine.command)
    monkeypatch.setattr(mounting, "find_mount", machine.find_mount)
    monkeypatch.setattr(mounting, "unmount_and_wait", machine.unmount_and_wait)
    return machine
