"""The machine of the figures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from mystfuse import __version__

_HERE = str(Path(__file__).parent)


def facts() -> dict[str, str]:
    """CPU, kernel, versions."""
    meminfo = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(meminfo[1]) >> 20} GiB" if meminfo else "?",
        "load": f"{os.getloadavg()[0]:.1f}",
        "kernel": platform.release(),
        "user": "root" if os.getuid() == 0 else "an ordinary user: does not drop caches, but every mount is fresh",
        "mystfuse": f"{__version__} {_said('git', '-C', _HERE, 'describe', '--always', '--dirty')}",
        "python": platform.python_version(),
        "pyfuse3": version("pyfuse3"),
        "libfuse": _said("pkg-config", "--modversion", "fuse3"),
        "openssl": _said("openssl", "version").removeprefix("OpenSSL ").split(" ")[0],
        "fuse2fs": _said("dpkg-query", "-W", "-f=${Version}", "fuse2fs"),
        "cryptsetup": _said("dpkg-query", "-W", "-f=${Version}", "cryptsetup-bin"),
    }


def _cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return found[1] if found else platform.machine()


def _said(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "none"
    return result.stdout.strip() or "none"
