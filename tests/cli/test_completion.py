"""What is completed, and with what; the shells themselves are in ``test_completion_shells``."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click
import pytest

from mystfuse.cli.completion import SHELLS, Completion, quote_bash, script, split_bash
from mystfuse.cli.main import COMMANDS, cli
from mystfuse.cli.mount_options import OPTION_NAMES, parse_mount_options
from mystfuse.cli.short_help import SHORT_HELP
from tests.support.commands import mystfuse, run
from tests.support.encrypted_images import PHRASE, write_secret
from tests.support.made_images import make


def completions(*words: str) -> list[tuple[str, str]]:
    """Type and value of what completes the last word."""
    return [(item.type, item.value) for item in Completion(cli, "zsh").get_completions(list(words[:-1]), words[-1])]


def names(*words: str) -> list[str]:
    return [value for _, value in completions(*words)]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in "etc/apt", "bin", ".hidden", "odd":
        (tmp_path / "tree" / name).mkdir(parents=True)
    (tmp_path / "tree/etc/hosts").touch()
    (tmp_path / "tree/bin/tool").touch(0o755)
    (tmp_path / "tree/bin/text").touch(0o644)
    (tmp_path / "tree/bin/dead").symlink_to("nowhere")
    (tmp_path / "tree/link").symlink_to("etc")
    (tmp_path / "tree/odd/a\nb").touch()
    Path(os.fsdecode(bytes(tmp_path / "tree/odd") + b"/\xff")).touch()
    make(tmp_path / "tree", tmp_path / "app.img")
    monkeypatch.chdir(tmp_path)
    return "app.img"


def test_the_first_word_is_a_command_or_an_image() -> None:
    assert names("")[:-1] == list(COMMANDS)
    assert completions("")[-1] == ("file", "")
    assert completions("./um") == [("file", "./um")]
    assert names("um") == ["umount", "um"]


def test_what_commands_are_for_is_what_they_say() -> None:
    assert SHORT_HELP.keys() == set(COMMANDS)
    for name, text in SHORT_HELP.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None and command.get_short_help_str(100) == text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_completed(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    expected = {
        text
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for text in (*parameter.opts, *parameter.secondary_opts)
        if text.startswith("--")
    }
    assert set(names(name, "--")) == expected | {"--help"}


def test_options_of_the_short_form_are_those_of_mount() -> None:
    assert {"--version", "--pubkey", "--help"} <= set(names("--"))
    assert names("--read-only", "app.img", "--over") == ["--overlay-limit", "--overlay-store"]
    assert completions("--pubkey", "x") == completions("--pubkey=x") == [("pem", "x")]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("mount|", "file"), ("mount|app.img|", "dir"), ("verify|x", "file"), ("info|", "file"), ("mkext2|", "dir"),
        ("mkext2|tree|", "file"), ("ls|--roothash|", "file"), ("ls|--pubkey|", "pem"), ("ls|--key-file|", "file"),
        ("ls|--passphrase-file|", "file"), ("ls|--hash-device|", "file"), ("keys|fingerprint|", "pem"),
        ("keys|fingerprint|a.pem|", "pem"), ("package|", "pem"), ("package|a.pem|", "file"), ("package|-o|", "file"),
        ("run|--signer|", "pem"), ("run|--rootfs|", "file"), ("run|", "file"), ("mount|--log-file|", "file"),
        ("mount|--overlay-store|", "dir"), ("sign|--attach|", "file"), ("sign|--sign|a.pem:", "pem"),
        ("exec|--mount|tr", "file"), ("exec|", "file"), ("extract|app.img|/|", "file"), ("commit|mnt|", "file"),
        ("umount|--commit|", "file"), ("mkext2|--exclude-from|", "file"), ("mkext2|--encrypt|", "file"),
        ("mount|-o|ro,roothash=", "file"), ("mount|-o|pubkey=", "pem"), ("mount|-o|overlay_store=", "dir"),
        ("mount|-o|keyfile=", "file"),
    ],
)  # fmt: skip
def test_files_are_left_to_the_shell(words: str, kind: str) -> None:
    assert [found for found, _ in completions(*words.split("|"))] == [kind]


@pytest.mark.parametrize("words", ["exec|--mount|tree=", "mount|--uid|", "mount|-o|uid=", "ls|--key-command|"])
def test_nothing_is_offered_for_what_only_people_know(words: str) -> None:
    assert completions(*words.split("|")) == []


def test_every_mount_option_is_offered_as_it_is_accepted() -> None:
    offered = names("mount", "-o", "")
    assert {name.rstrip("=") for name in offered} == OPTION_NAMES - {"fsname", "subtype", "keyfile", "ready_fd"}
    for name in offered:
        if not name.endswith("="):
            parse_mount_options(name, {})
    assert names("mount", "-o", "ro,ro") == ["ro,roothash="], "ro is given already"
    assert "roothash=x,roothash=" in names("mount", "-o", "roothash=x,roo"), "it may be given again"
    assert names("mount", "-o", "a\\,b,on_corruption=u") == ["a\\,b,on_corruption=unmount"]


def test_variables_but_no_values_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_TEST", "hidden")
    assert names("exec", "--env", "SECRET_OF") == ["SECRET_OF_TEST"]
    assert completions("exec", "--env", "SECRET_OF_TEST=") == [("file", "")]


def test_oci_images_are_directories_and_files() -> None:
    assert names("oci", "app.img", "") == ["oci:", "oci-archive:"]
    assert names("oci", "app.img", "oci-") == ["oci-archive:"]
    assert completions("oci", "app.img", "oci:lay") == [("dir", "lay")]
    assert completions("oci", "app.img", "oci-archive:a") == [("file", "a")]
    assert completions("oci", "app.img", "oci:layout:t") == completions("oci", "app.img", "docker:x") == []


def test_help_knows_commands_and_those_in_groups() -> None:
    assert names("help", "k") == ["keys"]
    assert names("help", "keys", "") == ["fingerprint"]
    assert names("help", "verify", "") == []


def test_paths_in_an_image(image: str) -> None:
    assert names("ls", image, "/") == ["/lost+found/", "/bin/", "/etc/", "/link/", "/odd/"]
    assert names("ls", image, "") == names("ls", image, "/")
    assert names("ls", image, "/.h") == ["/.hidden/"]
    assert names("cat", image, "/etc/hosts", "etc/h") == ["etc/hosts"]
    assert names("extract", image, "/link/") == ["/link/apt/", "/link/hosts"]
    assert names("tar", image, "/nowhere/") == names("tar", "no.img", "/") == []


def test_programs_in_an_image(image: str) -> None:
    assert sorted(names("exec", image, "/bin/")) == ["/bin/dead", "/bin/tool"]
    assert names("exec", image, "to") == ["tool"], "as in PATH"
    assert names("exec", image, "/bin/tool", "/etc/h") == ["/etc/hosts"]
    assert names("exec", image, "/bin/tool", "etc/h") == []
    assert names("exec", image, "/bin/tool", "--") == [], "the program's options are not ours"


def test_names_that_no_line_can_hold_are_left_out(image: str) -> None:
    lines = Completion(cli, "zsh").lines(["ls", image, "/odd/"])
    assert lines == ["plain\t/odd/\udcff\t"]
    env = {"_MYSTFUSE_COMPLETE": "zsh_complete"}
    result = mystfuse("ls", image, "/odd/", env=env)
    assert (result.stdout, result.stderr) == ("plain\t/odd/\udcff\t\n", "")


def test_an_image_is_read_if_the_options_trust_it(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names("ls", "--no-trust-self", image, "/e") == []
    assert names("ls", "--roothash", "00" * 32, image, "/e") == []
    root_hash = run("tail", "-c", "4096", image).stdout and mystfuse("fssig", "--roothash", image).stdout.strip()
    assert names("ls", "--no-trust-self", "--roothash", root_hash, image, "/e") == ["/etc/"]
    monkeypatch.setenv("MYSTFUSE_TRUST_SELF", "no")
    assert names("ls", image, "/e") == []


def test_damage_shows_nothing(image: str) -> None:
    with open(image, "r+b") as file:
        file.seek(1024)
        file.write(bytes(64))
    result = mystfuse("ls", image, "/", env={"_MYSTFUSE_COMPLETE": "zsh_complete"})
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_an_encrypted_image_needs_its_key_and_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree/etc").mkdir(parents=True)
    write_secret(tmp_path / "key", os.urandom(64))
    write_secret(tmp_path / "phrase", PHRASE)
    make(tmp_path / "tree", tmp_path / "app.img", "--encrypt", tmp_path / "key")
    env = {"_MYSTFUSE_COMPLETE": "zsh_complete"}

    def complete(*options: str) -> tuple[str, str]:
        result = mystfuse("ls", *options, "app.img", "/e", env=env)
        return result.stdout, result.stderr

    assert complete() == ("", "")
    assert complete("--key-file", "key") == ("part\t/etc/\t\n", "")
    assert complete("--key-file", "phrase") == ("", "")
    os.mkfifo(tmp_path / "pipe")
    assert complete("--key-file", "pipe") == complete("--key-file", "-") == ("", "")
    assert complete("--key-command", "touch ran; cat key") == ("", "")
    assert not (tmp_path / "ran").exists(), "a command was run"


def test_a_pipe_for_an_image_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    began = time.monotonic()
    result = mystfuse("ls", tmp_path / "pipe", "/", env={"_MYSTFUSE_COMPLETE": "zsh_complete"})
    assert (result.stdout, result.stderr) == ("", "")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("text", "words", "start", "quote"),
    [
        ("mystfuse ", ["mystfuse", ""], 0, ""),
        ("mystfuse ls", ["mystfuse", "ls"], 0, ""),
        ('m a\\ b \'c d\' "e\\"f" g', ["m", "a b", "c d", 'e"f', "g"], 0, ""),
        ("m 'a b", ["m", "a b"], 0, "'"),
        ('m x"a b', ["m", "xa b"], 1, '"'),
        ("m --sign=a:b", ["m", "--sign=a:b"], 9, ""),
        ("m a\\:b", ["m", "a:b"], 0, ""),
        ("m 'a:b'c", ["m", "a:bc"], 0, ""),
        ("m 'a", ["m", "a"], 0, "'"),
        ("m a\\", ["m", "a"], 0, ""),
        ("m ''", ["m", ""], 0, ""),
    ],
)
def test_lines_of_bash_are_split_as_bash_does(text: str, words: list[str], start: int, quote: str) -> None:
    assert split_bash(text, "\"'><=;|&(:") == (words, start, quote)


@pytest.mark.parametrize("text", ["a b", "ä'\"$x`y`", "~/x", "a\\b", "(x)&|;<>*?[]{}!#", "-x=1:2,3@4%5+6"])
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_bash_reads_what_is_quoted_for_it(text: str, quote: str) -> None:
    quoted = quote + quote_bash(text, quote) + quote
    assert run("bash", "-c", f"printf %s {quoted}", env={"LANG": "C.UTF-8"}).stdout == text


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_printed_by_the_command_and_by_the_variable(shell: str) -> None:
    printed = mystfuse("completion", shell).stdout
    assert printed == mystfuse(env={"_MYSTFUSE_COMPLETE": f"{shell}_source"}).stdout == script(shell)
    assert f"_MYSTFUSE_COMPLETE={shell}_complete" in printed
    run(shell, "-n", "-c", printed) if shell != "fish" else run("fish", "-n", "/dev/stdin", input=printed)


@pytest.mark.parametrize("instruction", ["nonsense", "csh_source", "bash_nonsense", "_"])
def test_an_unknown_instruction_prints_nothing(instruction: str) -> None:
    result = mystfuse(env={"_MYSTFUSE_COMPLETE": instruction})
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "")


def test_a_pipe_for_a_passphrase_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree/etc").mkdir(parents=True)
    write_secret(tmp_path / "key", os.urandom(64))
    make(tmp_path / "tree", tmp_path / "app.img", "--encrypt", tmp_path / "key")
    # Held open and written by nobody, so that reading it would never end.
    os.mkfifo(tmp_path / "phrase")
    (tmp_path / "link").symlink_to("phrase")
    descriptor = os.open(tmp_path / "phrase", os.O_RDWR)
    try:
        result = mystfuse(
            "ls", "--passphrase-file", "link", "app.img", "/", env={"_MYSTFUSE_COMPLETE": "zsh_complete"}, timeout=30
        )
    finally:
        os.close(descriptor)
    assert (result.stdout, result.stderr) == ("", "")
