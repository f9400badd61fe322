"""One target under libFuzzer, guided by the code of mystfuse that each input reaches: ``python -m fuzz.guided TARGET
[LIBFUZZER-OPTION...]``. In a process of its own, since libFuzzer ends it."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["mystfuse.formats", "mystfuse.ext2", "mystfuse.trust"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    import logging

    # We log what we skip in an image: not here, where it would happen a million times.
    logging.disable(logging.ERROR)
    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], TARGETS[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
