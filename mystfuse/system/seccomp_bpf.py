"""Seccomp filters: BPF programs made from a policy that names system calls.

A policy says which calls are allowed, which are refused with an errno, which end the process, and what happens to all
others. Calls of another ABI (32-bit, x32) end the process: they have other numbers.

Sources: seccomp(2), the kernel's Documentation/userspace-api/seccomp_filter.rst, <linux/seccomp.h>, <linux/filter.h>,
<linux/audit.h>. Why no library: docs/adr/0012.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mystfuse.system import libc
from mystfuse.system.syscall_numbers import known_syscalls, syscall_numbers

# SECCOMP_RET_*
ALLOW = 0x7FFF0000
LOG = 0x7FFC0000
KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000

_MAX_ERRNO = 4095
ALL_BITS = 0xFFFFFFFF_FFFFFFFF
INT_BITS = 0xFFFFFFFF
"""What the kernel looks at where a call takes an int: the upper half may hold anything."""

# <linux/bpf_common.h>: BPF_LD | BPF_W | BPF_ABS, BPF_ALU | BPF_AND | BPF_K, BPF_JMP | ..., BPF_RET | BPF_K
_LOAD, _AND, _JUMP, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_MAX_INSTRUCTIONS = 4096
_MAX_OFFSET = 255

# struct seccomp_data: int nr, u32 arch, u64 instruction_pointer, u64 args[6]; both machines have the low half first.
_NR_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_AUDIT_ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_SYSCALL_BIT = 0x40000000

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1


class FilterError(Exception):
    """No program can express the policy."""


def refuse(errno: int) -> int:
    """The action: the call fails with ``errno``."""
    if not 0 < errno <= _MAX_ERRNO:
        raise FilterError(f"errno {errno} is not one")
    return _ERRNO | errno


@dataclass(frozen=True, slots=True)
class Argument:
    """A condition: argument ``index`` (0 to 5) is ``value`` in the bits of ``mask``."""

    index: int
    value: int
    mask: int = INT_BITS

    def __post_init__(self) -> None:
        if not 0 <= self.index < 6 or not 0 < self.mask <= ALL_BITS or self.value & ~self.mask:
            raise FilterError(f"{self}: no argument has this value in these bits")


@dataclass(frozen=True, slots=True)
class Rule:
    """An action for the calls whose arguments fulfil all conditions."""

    action: int
    conditions: Sequence[Argument] = ()


Rules = int | Sequence[Rule]
"""An action, or rules: the first whose conditions hold decides; if none does, the policy's default."""


def can_filter(machine: str | None = None) -> bool:
    """Whether we know the numbers of ``machine``'s calls (as uname(2) calls it; None: this one)."""
    return (machine or platform.machine()) in _AUDIT_ARCHES


def make_program(policy: Mapping[str, Rules], default: int, machine: str | None = None) -> bytes:
    """The program, an array of ``struct sock_filter``, as ``install`` and bwrap(1)'s ``--seccomp`` take it.

    Args:
        policy: what happens to which call; a call that this machine does not have, and others do, is ignored.
        default: what happens to all others, those of kernels to come among them.
        machine: x86_64 or aarch64; None: this one.

    Raises:
        FilterError: a name that is no system call, or a machine that is not known.
    """
    machine = machine or platform.machine()
    if machine not in _AUDIT_ARCHES:
        raise FilterError(f"no filters of system calls for {machine}")
    if unknown := policy.keys() - known_syscalls():
        raise FilterError(f"no system call is called {', '.join(sorted(unknown))}")
    numbers = syscall_numbers(machine)
    rules = {numbers[name]: policy[name] for name in policy if name in numbers}
    program = [
        _pack(_LOAD, _ARCH_OFFSET),
        _pack(_IF_EQUAL, _AUDIT_ARCHES[machine], 1, 0),
        _pack(_RETURN, KILL_PROCESS),
        _pack(_LOAD, _NR_OFFSET),
    ]
    if machine == "x86_64":
        # -1 is above too: a tracer's "no call", which does nothing in any case.
        program += [_pack(_IF_AT_LEAST, _X32_SYSCALL_BIT, 0, 1), _pack(_RETURN, KILL_PROCESS)]
    program += _decide(_ranges(rules, default), default)
    if len(program) > _MAX_INSTRUCTIONS:
        raise FilterError(f"a filter of {len(program)} instructions: the kernel takes {_MAX_INSTRUCTIONS}")
    return b"".join(program)


def install(program: bytes, all_threads: bool = False) -> None:
    """Put this thread, and what it starts, under ``program`` for good; no-new-privileges is set with it.

    Args:
        all_threads: put the other threads of this process under it too.

    Raises:
        OSError: the kernel has no seccomp, or does not take the program.
    """

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    argument = Program(len(program) // 8, program)
    flags = _SECCOMP_FILTER_FLAG_TSYNC if all_threads else 0
    number = syscall_numbers(platform.machine())["seccomp"]
    try:
        libc.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        thread = libc.system_call(number, _SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(argument))
    except OSError as error:
        raise OSError(error.errno, f"no filter of system calls: {error.strerror}") from None
    if thread:
        raise OSError(f"thread {thread} cannot be put under the filter of system calls")


def _pack(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """A ``struct sock_filter``; the jumps count from the next instruction."""
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _ranges(rules: Mapping[int, Rules], default: int) -> list[tuple[int, Rules]]:
    """The ranges of numbers and their rules; neighbours with the same rules are one range."""
    ranges: list[tuple[int, Rules]] = [(0, default)]
    for number in sorted({*rules, *(number + 1 for number in rules)}):
        decision = rules.get(number, default)
        if decision != ranges[-1][1]:
            ranges.append((number, decision))
    if len(ranges) > 1 and ranges[1][0] == 0:
        del ranges[0]
    return ranges


def _decide(ranges: Sequence[tuple[int, Rules]], default: int) -> list[bytes]:
    """Find the range of the number that is loaded, by halves, and decide."""
    if len(ranges) == 1:
        return _apply(ranges[0][1], default)
    middle = len(ranges) // 2
    below, above = _decide(ranges[:middle], default), _decide(ranges[middle:], default)
    if len(below) <= _MAX_OFFSET:
        return [_pack(_IF_AT_LEAST, ranges[middle][0], len(below), 0), *below, *above]
    return [_pack(_IF_AT_LEAST, ranges[middle][0], 0, 1), _pack(_JUMP, len(below)), *below, *above]


def _apply(rules: Rules, default: int) -> list[bytes]:
    """Decide by the arguments."""
    if isinstance(rules, int):
        return [_pack(_RETURN, rules)]
    code: list[bytes] = []
    for rule in rules:
        block = [_pack(_RETURN, rule.action)]
        for condition in reversed(rule.conditions):
            for shift in (32, 0):
                mask = condition.mask >> shift & INT_BITS
                if mask:
                    # What is to be skipped when the condition does not hold: the rest of this rule.
                    block = [*_load_argument(condition.index, shift, mask),
                             _pack(_IF_EQUAL, condition.value >> shift & INT_BITS, 0, len(block)), *block]  # fmt: skip
        code += block
    return [*code, _pack(_RETURN, default)]


def _load_argument(index: int, shift: int, mask: int) -> list[bytes]:
    load = [_pack(_LOAD, _ARGUMENTS_OFFSET + 8 * index + (4 if shift else 0))]
    return load if mask == INT_BITS else [*load, _pack(_AND, mask)]
