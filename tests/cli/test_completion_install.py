"""``mystfuse completion install``: files where shells and man look, and nobody else's overwritten."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mystfuse.cli import completion_install
from mystfuse.cli.completion import script
from mystfuse.errors import MystfuseError
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.terminal import FILES

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory of an ordinary user."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ZDOTDIR", raising=False)
    for name in "XDG_DATA_HOME", "XDG_CONFIG_HOME":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(completion_install, "_is_root", lambda: False)
    return tmp_path


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


PAGES = {".local/share/man/man1/mystfuse.1", ".local/share/man/man8/mount.mystfuse.8"}
BASH = ".local/share/bash-completion/completions/mystfuse"
FISH = ".config/fish/completions/mystfuse.fish"
ZSH = ".local/share/zsh/site-functions/_mystfuse"


def test_a_user_has_them_at_home_and_can_remove_them(home: Path) -> None:
    result = in_process("completion", "install", "bash", "zsh", "fish")
    assert result.returncode == 0, result.stderr
    assert files(home) == {*PAGES, BASH, FISH, ZSH}
    assert set(result.stdout.splitlines()) == {f"wrote {home / name}" for name in files(home)}
    assert f"fpath=({home / ZSH}".removesuffix("/_mystfuse") in result.stderr, "zsh does not look there by itself"
    assert (home / BASH).read_text() == script("bash")
    assert (FILES["bash"][1], FILES["fish"][1]) == (BASH, FISH), "where the shells of the other tests found them"
    assert (home / BASH).stat().st_mode & 0o777 == 0o666 & 0o644 & ~current_umask()
    for page in PAGES:
        assert (home / page).read_bytes() == (PROJECT / "man" / Path(page).name).read_bytes()
    again = in_process("completion", "install", "bash", "zsh", "fish")
    assert again.stdout == result.stdout, "ours are written anew"
    removed = in_process("completion", "install", "--uninstall")
    assert set(removed.stdout.splitlines()) == {line.replace("wrote", "removed") for line in result.stdout.splitlines()}
    assert files(home) == set()
    assert in_process("completion", "install", "--uninstall").stdout == "nothing is installed\n"


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_one_shell_alone_is_removed_alone(home: Path) -> None:
    in_process("completion", "install", "bash", "fish")
    in_process("completion", "install", "--uninstall", "fish")
    assert files(home) == {*PAGES, BASH}


def test_without_a_name_it_is_for_the_shells_on_the_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "bin").mkdir()
    (home / "bin/fish").touch(0o755)
    monkeypatch.setenv("PATH", str(home / "bin"))
    in_process("completion", "install")
    assert files(home) == {*PAGES, FISH, "bin/fish"}


def test_xdg_directories_count_if_absolute(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    in_process("completion", "install", "bash", "fish")
    assert files(home) == {*PAGES, "data/bash-completion/completions/mystfuse", FISH}


def test_a_directory_of_the_users_zsh_is_used(home: Path) -> None:
    (home / "functions").mkdir()
    (home / ".zshrc").write_text("echo noise; fpath=(~/functions $fpath)\n")
    result = in_process("completion", "install", "zsh")
    assert files(home) == {*PAGES, ".zshrc", "functions/_mystfuse"}
    assert result.stderr == ""


@pytest.mark.parametrize("name", [BASH, ".local/share/man/man1/mystfuse.1"])
@pytest.mark.parametrize("option", [(), ("--uninstall",)])
def test_what_is_not_ours_stays_and_nothing_is_half_done(name: str, option: tuple[str, ...], home: Path) -> None:
    (home / name).parent.mkdir(parents=True)
    (home / name).write_text("my own\n")
    result = in_process("completion", "install", *option)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"mystfuse: {home / name}: is there, and not of mystfuse's making")
    assert files(home) == {name} and (home / name).read_text() == "my own\n"


def test_a_place_that_cannot_be_written_is_one_line(home: Path) -> None:
    (home / ".local").touch()
    result = in_process("completion", "install", "bash")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith(f"mystfuse: {home}/.local/share/bash-completion/completions")
    assert result.stderr.count("\n") == 1


def test_root_has_them_where_debian_looks_for_everybody(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_install, "_is_root", lambda: True)
    assert str(completion_install._EVERYBODY) == "/usr/local/share"
    monkeypatch.setattr(completion_install, "_EVERYBODY", home / "share")
    assert str(completion_install._FISH_OF_EVERYBODY) == "/etc/fish/completions"
    monkeypatch.setattr(completion_install, "_FISH_OF_EVERYBODY", home / "fish")
    completion_install.install(("bash", "zsh", "fish"))
    assert files(home) == {
        "share/bash-completion/completions/mystfuse", "share/zsh/site-functions/_mystfuse",
        "fish/mystfuse.fish", "share/man/man1/mystfuse.1",
        "share/man/man8/mount.mystfuse.8",
    }  # fmt: skip


def test_zsh_and_fish_look_there_for_everybody() -> None:
    assert "/usr/local/share/zsh/site-functions" in run("zsh", "-f", "-c", "print -l $fpath").stdout.splitlines()
    looked = run("env", "-u", "XDG_DATA_DIRS", "fish", "-c", "string join \\n $fish_complete_path")
    assert "/etc/fish/completions" in looked.stdout.splitlines()


def test_an_unknown_shell_is_refused(home: Path) -> None:
    result = mystfuse("completion", "install", "csh")
    assert result.returncode == 2 and "'bash', 'zsh', 'fish'" in result.stderr
    with pytest.raises(MystfuseError):
        (home / ".config").touch()
        completion_install.install(("fish",))
    assert files(home) == {".config"}
