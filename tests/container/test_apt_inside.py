"""apt and dpkg install packages in an image, as an ordinary user: this machine's own, and those of a fresh Debian."""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path

import pytest

from tests.support.commands import GROUP, SBIN, USER, mystfuse, run
from tests.support.images import PROJECT
from tests.support.subordinate_users import RootInside

PROGRAMS = (
    "apt-get",
    "apt-cache",
    "dpkg",
    "dpkg-deb",
    "dpkg-split",
    "dpkg-query",
    "tar",
    "setpriv",
    "start-stop-daemon",
)
APPLETS = ("cat", "chown", "cp", "diff", "getopt", "id", "ls", "mkdir", "rm", "sh", "stat", "su", "test", "true")
DIRECTORIES = (
    "bin", "etc/apt/apt.conf.d", "etc/apt/preferences.d", "etc/apt/trusted.gpg.d", "repository", "root", "sbin",
    "usr/bin", "usr/lib/apt", "usr/lib/dpkg", "var/cache/apt/archives/partial", "var/lib/apt/lists/partial",
    "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log/apt",
)  # fmt: skip
USERS = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\n_apt:x:42:65534::/nonexistent:/bin/sh\nmail:x:8:8::/:/bin/sh\n",
    "etc/group": "root:x:0:\nmail:x:8:\nnogroup:x:65534:\n",
}
CONTROL = """Package: probe
Version: 1
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: whose files are these
"""
# What maintainers' scripts do: give files away, drop privileges, keep others out.
POSTINST = """#!/bin/sh
set -e
mkdir -p /var/lib/probe && chown 33:33 /var/lib/probe
/usr/bin/setpriv --reuid=33 --regid=33 --clear-groups sh -c 'id -u > /var/lib/probe/user; id -G > /var/lib/probe/groups'
echo configured
"""
MIRROR = "deb.debian.org"


@pytest.fixture
def inside(ordinary_user: list[str], open_tmp_path: Path) -> RootInside:
    """Runs ``mystfuse`` as an ordinary user who has subordinate users."""
    return RootInside(open_tmp_path, ordinary_user)


def copy_program(path: Path, root: Path) -> None:
    """Copy a program with its libraries."""
    libraries = set(re.findall(r"(/\S+) \(0x", run("ldd", path).stdout))
    for each in (path, *map(Path, libraries)):
        target = root / str(each).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(each, target)


@pytest.fixture
def image_with_apt(open_tmp_path: Path) -> Path:
    """An image of this machine's apt and dpkg, and a repository with a package."""
    if shutil.which("apt-get") is None:
        pytest.skip("no Debian: apt-get is not installed")
    root = open_tmp_path / "tree"
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    for program in PROGRAMS:
        found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert found is not None
        copy_program(Path(found), root)
    for method in "file", "copy", "store":
        copy_program(Path("/usr/lib/apt/methods") / method, root)
    shutil.copytree("/usr/share/dpkg", root / "usr/share/dpkg")
    # dpkg wants it to be there; there is no cache of libraries.
    (root / "sbin/ldconfig").symlink_to("/bin/true")
    for name, text in USERS.items():
        (root / name).write_text(text)
    (root / "var/lib/dpkg/status").touch()
    (root / "etc/apt/sources.list").write_text("deb [trusted=yes] file:/repository ./\n")
    add_package(open_tmp_path / "package", root / "repository")
    (root / "var/lib/apt/lists/partial").chmod(0o700)
    os.chown(root / "var/lib/apt/lists/partial", 42, 0)
    image = open_tmp_path / "apt.img"
    assert mystfuse("mkext2", "--free", "32M", root, image).returncode == 0
    image.chmod(0o644)
    return image


def add_package(work: Path, repository: Path) -> None:
    """A package whose file belongs to mail, and the index of the repository."""
    (work / "DEBIAN").mkdir(parents=True)
    (work / "DEBIAN/control").write_text(CONTROL)
    (work / "DEBIAN/postinst").write_text(POSTINST)
    (work / "DEBIAN/postinst").chmod(0o755)
    (work / "srv").mkdir()
    (work / "srv/of-mail").write_text("a letter\n")
    (work / "srv/of-mail").chmod(0o2640)
    os.chown(work / "srv/of-mail", 0, 8)
    deb = repository / "probe.deb"
    run("dpkg-deb", "--build", work, deb)
    digest = run("sha256sum", deb).stdout.split()[0]
    index = f"{CONTROL}Filename: ./probe.deb\nSize: {deb.stat().st_size}\nSHA256: {digest}\n\n"
    (repository / "Packages").write_text(index)


def test_apt_installs_a_package(inside: RootInside, image_with_apt: Path) -> None:
    script = (
        "apt-get update && apt-get install -y probe && /usr/bin/dpkg --verify &&"
        "/usr/bin/dpkg-query -W -f '${db:Status-Status}\\n' probe;"
        "stat -c %u:%g:%a /srv/of-mail /var/lib/probe /var/lib/apt/lists/partial; cat /var/lib/probe/*"
    )
    said = inside.output(image_with_apt, "sh", "-c", f"{{ {script}; }} 2>&1")
    assert said.endswith("installed\n0:8:2640\n33:33:755\n42:0:700\n33\n33\n") and "\nconfigured\n" in said
    # Its methods became _apt, or it would have said so.
    assert not re.search(r"^[WE]: ", said, re.M)


def test_apt_without_other_users(inside: RootInside, image_with_apt: Path) -> None:
    """What the documents say: apt has to stay root, and nothing can be given away."""
    stays = "-o APT::Sandbox::User=root"
    for script, works, says in (
        ("apt-get update", False, "setgroups"),
        (f"apt-get {stays} update && apt-cache show probe", True, "whose files are these"),
        (f"apt-get {stays} update && apt-get {stays} install -y probe", False, "dpkg: error processing"),
    ):
        result = inside.run("exec", "--root", image_with_apt, "sh", "-c", f"{{ {script}; }} 2>&1", subuid="")
        assert (result.returncode == 0) == works and says in result.stdout, result.stdout


def recipe() -> str:
    """The commands of docs/running.md that an ordinary user types for a Debian of their own."""
    text = (PROJECT / "docs/running.md").read_text()
    section = text[text.index("### A Debian tree with apt inside") : text.index("## Packages")]
    blocks = re.findall(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return "".join(re.findall(r"^\$ (.*\n)", "".join(blocks), re.MULTILINE))


@pytest.mark.slow
def test_a_fresh_debian_installs_packages(inside: RootInside, open_tmp_path: Path) -> None:
    """The recipe, and then services with users of their own, a program with a capability, set-group-ID."""
    try:
        socket.create_connection((MIRROR, 80), 10).close()
    except OSError as error:
        pytest.skip(f"{MIRROR}: {error}")
    work = open_tmp_path / "work"
    work.mkdir()
    os.chown(work, USER, GROUP)
    code = inside.ordinary_user[inside.ordinary_user.index("env") :]
    (open_tmp_path / "mystfuse").write_text(f'#!/bin/sh\nexec {" ".join(code)} "$@"\n')
    (open_tmp_path / "mystfuse").chmod(0o755)
    told = inside.other_program(
        "env", f"PATH={open_tmp_path}:{SBIN}", f"HOME={work}", f"TMPDIR={work}", "bash", "-e", "-x", "-c", recipe()
    )
    result = run(*told, cwd=work, timeout=1800)
    assert result.stdout.splitlines()[-1] == "Hello, world!"
    script = (
        "export DEBIAN_FRONTEND=noninteractive; apt-get update && apt-get install -y --no-install-recommends "
        "libcap2-bin iputils-ping openssh-client cron && getcap /bin/ping && dpkg --verify && dpkg --audit;"
        "stat -c '%U:%G %a' /usr/bin/ssh-agent /usr/bin/crontab /var/lib/apt/lists/partial"
    )
    result = inside.run("exec", "--root", work / "hello.img", "sh", "-c", script, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    seen = result.stdout[result.stdout.index("/bin/ping cap") :].splitlines()
    assert seen == ["/bin/ping cap_net_raw=ep", "root:_ssh 2755", "root:crontab 2755", "_apt:root 700"]
    assert "Setting up cron" in result.stdout and not re.search("^[WE]: ", result.stderr, re.M)
