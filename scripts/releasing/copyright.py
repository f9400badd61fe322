"""Prints a package's copyright file: one of ours, and a paragraph for each Python package in a directory.

    copyright.py OURS SITE_PACKAGES

https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path


def declared(found: Distribution, field: str) -> str:
    """What its metadata has for a field; empty if nothing."""
    return str((found.metadata.get_all(field) or [""])[0])


def author(found: Distribution) -> str:
    """Who wrote it, by name."""
    names = declared(found, "Author") or re.sub(r"\s*<[^>]*>", "", declared(found, "Author-email"))
    return names.strip('" ') or f"the authors of {found.name}"


def licence(found: Distribution) -> str:
    """Its licence, as an expression of SPDX where it has one."""
    name = declared(found, "License-Expression") or declared(found, "License")
    if name and "\n" not in name:
        return name
    classes = [text.rsplit(" :: ", 1)[-1] for text in found.metadata.get_all("Classifier", []) if ":: OSI" in text]
    if not classes:
        sys.exit(f"copyright: {found.name}: its metadata names no licence")
    return " or ".join(classes)


def paragraph(found: Distribution) -> str:
    """What is said about one Python package."""
    tops = sorted({str(file).split("/")[0] for file in found.files or [] if not str(file).startswith("..")})
    here = "usr/lib/mystfuse/venv/lib/python*/site-packages"
    notes = next(top for top in tops if top.endswith(".dist-info"))
    files = "\n ".join(f"{here}/{top}" + ("" if top.endswith((".py", ".so")) else "/*") for top in tops)
    # The name of a licence is one word, but for "or" and "and".
    name = re.sub(
        r"(?<!or)(?<!and) (?!or |and )", "-", licence(found).replace(" OR ", " or ").replace(" AND ", " and ")
    )
    return (
        f"Files: {files}\nCopyright: {author(found)}\nLicense: {name}\n"
        f" The text is in /{here}/{notes}. On Debian systems, those of\n"
        " Apache-2.0, BSD and LGPL-2.1 are in /usr/share/common-licenses too.\n"
    )


def main(ours: str, site_packages: str) -> None:
    """Print it."""
    others = sorted(distributions(path=[site_packages]), key=lambda found: found.name.lower())
    parts = [Path(ours).read_text(encoding="utf-8").strip() + "\n"]
    parts += [paragraph(found) for found in others if found.name != "mystfuse"]
    print("\n".join(parts), end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
