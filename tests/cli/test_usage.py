"""Usage errors name the command, what was probably meant, and where help is."""

from __future__ import annotations

import pytest

from mystfuse import __version__
from mystfuse.cli.main import COMMANDS
from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line

# An image and a mountpoint alone are "mount", and "run" takes options in two places.
TAKE_ARGUMENTS = [name for name in COMMANDS if name not in ("status", "help", "keys", "cache", "completion")]


@pytest.mark.parametrize("name", TAKE_ARGUMENTS)
def test_missing_arguments_name_the_command_and_its_help(name: str) -> None:
    assert_one_line(in_process(name), 2, f"mystfuse: {name}: Missing argument", f"(see mystfuse {name} --help)")


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_options_name_the_command_and_its_help(name: str) -> None:
    result = in_process(name, "--no-such-thing")
    assert_one_line(result, 2, f"mystfuse: {name}: no such option --no-such-thing", f"(see mystfuse {name} --help)")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("verify", "--jsn", "x"), "verify: no such option --jsn; did you mean --json?"),
        (("mount", "--pubkeys", "x"), "mount: no such option --pubkeys; did you mean --pubkey?"),
        (("--vresion",), "mount: no such option --vresion; did you mean --version?"),
        (("ls", "--luks2", "x"), "ls: no such option --luks2; it is one of umount, commit, mkext2 "),
        (("ls", "-x", "i"), "ls: no such option -x (see"),
        (("cat", "--io-timeout", "soon", "i", "p"), "cat: Invalid value for '--io-timeout': 'soon' is not a number"),
        (("cat", "--io-timeout"), "cat: Option '--io-timeout' requires an argument (see"),
        (("verify", "a", "b"), "verify: Got unexpected extra argument (b) (see mystfuse verify --help)"),
        (
            ("verify", "--key-file=a", "--passphrase-file=b", "IMAGE"),
            "verify: --key-file and --passphrase-file exclude",
        ),
        (("help", "verfy"), "help: mystfuse has no command verfy; did you mean verify?"),
        (("help", "verify", "ls"), "help: mystfuse verify has no command ls"),
    ],
)
def test_what_was_probably_meant(small_image: object, words: tuple[str, ...], said: str) -> None:
    result = in_process(*(str(small_image) if word == "IMAGE" else word for word in words))
    assert_one_line(result, 2, f"mystfuse: {said}")


def test_a_name_of_the_original_is_the_command_itself() -> None:
    assert_one_line(in_process("exec-sgx"), 2, "Missing argument 'IMAGE'", "--help")
    assert in_process("help", "exec-sgx").stdout == in_process("exec", "--help").stdout


def test_the_version_has_a_short_option() -> None:
    said = in_process("-V").stdout
    assert said == in_process("--version").stdout and said.startswith(f"mystfuse, version {__version__}\n")


def test_help_is_the_help_of_the_program() -> None:
    assert in_process("help").stdout == in_process("--help").stdout == in_process("-h").stdout
