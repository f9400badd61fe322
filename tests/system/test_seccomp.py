"""Filters of system calls: the tests run the programs in an interpreter, and in the kernel."""

from __future__ import annotations

import errno
import platform
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from mystfuse.system.seccomp_bpf import (
    ALL_BITS,
    ALLOW,
    KILL_PROCESS,
    LOG,
    Argument,
    FilterError,
    Rule,
    Rules,
    make_program,
    refuse,
)
from mystfuse.system.syscall_numbers import syscall_numbers

ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINES = sorted(ARCHES)
HERE = platform.machine()
needs_filters = pytest.mark.skipif(HERE not in ARCHES, reason=f"no filters of system calls for {HERE}")

REFUSED, NOT_THERE = refuse(errno.EPERM), refuse(errno.ENOSYS)
NEW_NAMESPACES = 0x7E020000
POLICY: Mapping[str, Rules] = {
    "read": ALLOW, "write": ALLOW, "openat": LOG, "close": ALLOW, "bpf": REFUSED, "kexec_load": KILL_PROCESS,
    "open": ALLOW, "clone3": NOT_THERE,
    "clone": [Rule(ALLOW, [Argument(0, 0, NEW_NAMESPACES)])],
    "socket": [Rule(REFUSED, [Argument(0, 40)]), Rule(KILL_PROCESS, [Argument(0, 16), Argument(2, 9)]), Rule(ALLOW)],
    "ioctl": [Rule(REFUSED, [Argument(1, 0x5412)]), Rule(ALLOW)],
    "personality": [Rule(ALLOW, [Argument(0, 0, ALL_BITS)]), Rule(ALLOW, [Argument(0, 0xFFFFFFFF, ALL_BITS)])],
    "prctl": [Rule(ALLOW, [Argument(0, 0x5_0000_0001, 0xF_0000_00FF)])],
    "file_setattr": REFUSED,
}  # fmt: skip
VALUES = [
    0, 1, 9, 16, 40, 0x5412, 0x15412, 0x20000, 0x10000000, 0xFFFFFFFF, 0x1_0000_0000, 0x1_0000_0010, 0x5_0000_0001,
    0x5_0000_0101, 0xF5_0000_0001, 0x4_0000_0001, ALL_BITS,
]  # fmt: skip


def interpret(program: bytes, data: bytes) -> int:
    """The kernel's decision: an interpreter of the instructions that seccomp accepts."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, operand = instructions[position]
        position += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            assert operand % 4 == 0 and operand + 4 <= 64
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif code == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= operand
        elif code == 0x05:  # BPF_JMP | BPF_JA
            position += operand
        elif code in (0x15, 0x25, 0x35):  # BPF_JEQ, BPF_JGT, BPF_JGE
            holds = {0x15: accumulator == operand, 0x25: accumulator > operand, 0x35: accumulator >= operand}[code]
            position += if_true if holds else if_false
        elif code == 0x06:  # BPF_RET | BPF_K
            return int(operand)
        else:
            raise AssertionError(f"instruction {code:#x}")


def decide(program: bytes, machine: str, number: int, arguments: Sequence[int] = (), arch: int | None = None) -> int:
    words = [*arguments, *[0] * (6 - len(arguments))]
    return interpret(program, struct.pack("=IIQ6Q", number, ARCHES[machine] if arch is None else arch, 0, *words))


def expected(rules: Rules, default: int, arguments: Sequence[int]) -> int:
    if isinstance(rules, int):
        return rules
    for rule in rules:
        if all(arguments[each.index] & each.mask == each.value for each in rule.conditions):
            return rule.action
    return default


@pytest.mark.parametrize("default", [ALLOW, NOT_THERE])
@pytest.mark.parametrize("machine", MACHINES)
def test_a_program_decides_as_its_policy_says(machine: str, default: int) -> None:
    program = make_program(POLICY, default, machine)
    names = {number: name for name, number in syscall_numbers(machine).items()}
    for number in (*range(520), 0x3FFFFFFF):
        rules = POLICY.get(names.get(number, ""), default)
        for value in VALUES:
            for other in 0, 9:
                arguments = [value, value, other, value, value, value]
                assert decide(program, machine, number, arguments) == expected(rules, default, arguments), (
                    number, names.get(number), value,
                )  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
def test_a_long_program_decides_as_its_policy_says(machine: str) -> None:
    """With jumps longer than a conditional jump reaches."""
    numbers = syscall_numbers(machine)
    policy = {
        name: [Rule(refuse(1 + number), [Argument(index, number, ALL_BITS) for index in range(6)])]
        for name, number in numbers.items()
    }
    program = make_program(dict(list(policy.items())[:140]), ALLOW, machine)
    assert len(program) // 8 > 2000
    for index, (_, number) in enumerate(numbers.items()):
        assert decide(program, machine, number, [number] * 6) == (refuse(1 + number) if index < 140 else ALLOW)
        assert decide(program, machine, number, [number] * 5 + [number + 1]) == ALLOW
    with pytest.raises(FilterError, match="4096"):
        make_program(policy, ALLOW, machine)


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_kind_end_the_process(machine: str) -> None:
    program = make_program({}, ALLOW, machine)
    for arch in 0x40000003, 0x40000028, *(ARCHES[other] for other in MACHINES if other != machine), 0:
        assert decide(program, machine, 0, arch=arch) == KILL_PROCESS
    # x32 has system calls of its own, and other numbers for all the rest.
    for number in 0x40000000, 0x40000000 + 101, 0x40000000 + 520:
        assert decide(program, machine, number) == (KILL_PROCESS if machine == "x86_64" else ALLOW)


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(FilterError, match="opne"):
        make_program({"opne": ALLOW, "read": ALLOW}, ALLOW, "x86_64")
    with pytest.raises(FilterError, match="riscv64"):
        make_program({}, ALLOW, "riscv64")
    for bad in (6, 0, 1), (-1, 0, 1), (0, 2, 1), (0, 0, 0), (0, 1 << 32, 0xFFFFFFFF), (0, 0, 1 << 64):
        with pytest.raises(FilterError):
            Argument(*bad)
    for number in 0, 4096, -1:
        with pytest.raises(FilterError):
            refuse(number)
    # A call that only the other machine has.
    assert decide(make_program({"open": KILL_PROCESS}, ALLOW, "aarch64"), "aarch64", 2) == ALLOW


@pytest.mark.parametrize("header, machine", [("asm/unistd_64.h", "x86_64"), ("asm-generic/unistd.h", "aarch64")])
def test_the_numbers_are_those_of_the_kernels_headers(header: str, machine: str) -> None:
    found = [Path(where) / header for where in ("/usr/include", "/usr/include/x86_64-linux-gnu")]
    path = next((path for path in found if path.exists()), None)
    if path is None or (machine == "x86_64" and machine != HERE):
        pytest.skip(f"no <{header}> here")
    # fcntl and others have two names there, one of which stands for the number.
    numbers = dict(re.findall(r"^#\s*define __NR(?:3264)?_(\w+)\s+(\d+)$", path.read_text(), re.M))
    numbers.update({"newfstatat": numbers.get("newfstatat", numbers.get("fstatat"))})
    ours = syscall_numbers(machine)
    # Some calls that arm64 does not have.
    foreign = {"arch_specific_syscall", "syscalls", "fstatat", "sync_file_range2"}
    theirs = {
        name: int(number) for name, number in numbers.items()
        if name not in foreign and not (machine == "aarch64" and 403 <= int(number) <= 423)
    }  # fmt: skip
    assert {name: ours.get(name) for name in theirs} == theirs
    assert len(theirs) > 290
    # Each number has one name.
    assert len(set(ours.values())) == len(ours)


# Really installed

INSTALL = """
import ctypes, os, sys, threading
from mystfuse.system.seccomp_bpf import *
from mystfuse.system.syscall_numbers import syscall_numbers
import platform
numbers = syscall_numbers(platform.machine())
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(numbers[name], *map(ctypes.c_ulong, arguments))
    return ctypes.get_errno() if result < 0 else 0
"""


def run_installed(code: str, check: Callable[[int], bool] = lambda status: status == 0) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", INSTALL + code], capture_output=True, text=True, timeout=30, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert check(result.returncode), (result.returncode, result.stderr)
    return result.stdout.split()


@needs_filters
def test_the_kernel_decides_as_the_policy_says() -> None:
    said = run_installed(
        "install(make_program({\n"
        "    'getppid': refuse(71),\n"
        "    'personality': [Rule(refuse(72), [Argument(0, 0xFFFFFFFF)]),\n"
        "                    Rule(refuse(73), [Argument(0, 5, ALL_BITS)])],\n"
        "    'sethostname': refuse(74)}, ALLOW))\n"
        "print(call('getppid'), call('getuid'), call('personality', 0xFFFFFFFF), call('personality', 5),\n"
        "      call('personality', 0x1_0000_0000), call('sethostname', 0, 0))\n"
        "status = open('/proc/self/status').read().splitlines()\n"
        "print(*[line.split()[1] for line in status if line.startswith(('NoNewPrivs', 'Seccomp:'))])\n"
        "sys.stdout.flush()\n"
        "os.execv(sys.executable, [sys.executable, '-c', 'import os; print(os.getppid())'])\n"
    )
    # Python's os.getppid does not report failure: here the executed program is under the filter too.
    assert said == ["71", "0", "72", "73", "0", "74", "1", "2", "-71"]


@needs_filters
@pytest.mark.parametrize("call", ["call('getppid')", "call('getuid')"])
def test_a_call_ends_the_process(call: str) -> None:
    def ended(status: int) -> bool:
        return status == (-signal.SIGSYS if "getppid" in call else 0)

    assert run_installed(f"install(make_program({{'getppid': KILL_PROCESS}}, ALLOW))\n{call}\n", ended) == []


@needs_filters
@pytest.mark.parametrize("all_threads, answer", [(False, "0"), (True, "71")])
def test_other_threads_are_put_under_it_when_asked_for(all_threads: bool, answer: str) -> None:
    said = run_installed(
        "go, done = threading.Event(), []\n"
        "thread = threading.Thread(target=lambda: (go.wait(), done.append(call('getppid'))))\n"
        "thread.start()\n"
        f"install(make_program({{'getppid': refuse(71)}}, ALLOW), {all_threads})\n"
        "go.set(); thread.join(); print(*done)\n"
    )
    assert said == [answer]


@needs_filters
def test_a_program_that_the_kernel_does_not_take_is_an_error() -> None:
    said = run_installed(
        "for program in b'', b'\\0' * 8, bytes.fromhex('2000000001000000'):\n"
        "    try: install(program)\n"
        "    except OSError as error: print(error.errno)\n"
    )
    assert said == [str(errno.EINVAL)] * 3


@needs_filters
@pytest.mark.skipif(HERE != "x86_64", reason="32-bit calls by int 0x80")
def test_a_32_bit_call_ends_the_process() -> None:
    """getpid(2) through the entry of 32-bit programs (int 0x80), as code in a page of our own."""
    said = run_installed(
        "import mmap\n"
        "page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "page.write(bytes.fromhex('b814000000cd80c3'))\n"
        "gate = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))\n"
        "print(gate() in (os.getpid(), -38), flush=True)\n"
        "install(make_program({}, ALLOW))\n"
        "gate()\n"
        "print('after')\n",
        lambda status: status == -signal.SIGSYS,
    )
    assert said == ["True"]
