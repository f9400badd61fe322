"""What pyproject.toml cannot name: the native kernels, the tag of the wheel that has them, and completions, which are
written while a package is built."""

from __future__ import annotations

import glob
import importlib.util
import os
import subprocess
import sys
from distutils import log
from distutils.command.install_data import install_data

from setuptools import setup

# Where they lie below a prefix: in /usr and /usr/local, that is where man and the shells look.
PAGES = [(f"share/man/man{section}", sorted(glob.glob(f"mystfuse/man/*.{section}"))) for section in (1, 8)]
EXAMPLES = [("share/doc/mystfuse/examples", sorted(glob.glob("systemd/examples/*"))),
            ("share/doc/mystfuse/systemd", sorted(glob.glob("systemd/*.service")))]  # fmt: skip
COMPLETIONS = {
    "bash": "share/bash-completion/completions/mystfuse",
    "zsh": "share/zsh/site-functions/_mystfuse",
    "fish": "share/fish/vendor_completions.d/mystfuse.fish",
}


def completion(shell: str) -> str:
    """The script that a shell loads."""
    return subprocess.run(
        [sys.executable, "-c", "from mystfuse.cli.start import mystfuse; mystfuse()"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")])),
            "_MYSTFUSE_COMPLETE": f"{shell}_source",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


class InstallData(install_data):
    """Installs the completions as well."""

    def run(self) -> None:
        if importlib.util.find_spec("click") is None:
            log.warn("without completions: click, which writes them, is not installed")
        else:
            for shell, place in COMPLETIONS.items():
                file = os.path.join("build", "completions", place)
                os.makedirs(os.path.dirname(file), exist_ok=True)
                with open(file, "w", encoding="utf-8") as script:
                    script.write(completion(shell))
                self.data_files.append((os.path.dirname(place), [file]))
        super().run()


setup(
    cffi_modules=["mystfuse/kernels/native/build.py:ffi"],
    data_files=[*PAGES, *EXAMPLES],
    cmdclass={"install_data": InstallData},
    # cffi's part and ours use the stable ABI of Python alone.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
