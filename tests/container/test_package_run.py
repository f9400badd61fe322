"""Running a package: arguments, environment, limits, mounts, and executing the file itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mystfuse.container.resource_limits import limited_resources, make_group, make_pids_group
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.packages import KEY, NOT_TRUSTED, USAGE, Keys, execute, output, root_hash

KILLED = 128 + 9


def refused_run(package: Path, *arguments: str | Path) -> str:
    """The one line that says why a package is not run with these arguments. Its root file system is missing, which we
    would notice only later."""
    result = in_process("run", package, "--rootfs", "/absent.img", *arguments)
    assert (result.returncode, result.stdout) == (USAGE, "")
    lines = [line for line in result.stderr.splitlines() if "vouched for by nobody but itself" not in line]
    assert len(lines) == 1
    return lines[0]


def script(text: str) -> dict[str, Any]:
    """Settings of a package that runs a shell script."""
    return {"ApplicationPath": "/bin/sh", "ApplicationParameters": ["-c", text]}


def test_arguments(package: Callable[..., Path], image: Path) -> None:
    own = package(ApplicationParameters=["own", "two words"])
    assert output(own, image) == "own two words\n"
    extra = refused_run(own, "extra")
    assert "extra: " in extra
    assert "HostApplicationParameters is false" in extra
    from_host = package(ApplicationParameters=["own"], HostApplicationParameters=True)
    assert output(from_host, image) == "\n"
    assert output(from_host, image, "a", "-n", "--rootfs=x") == "a -n --rootfs=x\n"
    assert output(from_host, image, "--", "-e", "--rootfs") == "--rootfs\n"
    assert "no such option --absent (see mystfuse run --help)" in refused_run(from_host, "--absent", "x")
    assert "no such option --absent (see mystfuse run --help)" in refused_run(from_host, "--absent")
    assert "'--signer' requires an argument" in refused_run(from_host, "--signer")
    assert in_process("run").returncode == USAGE


def test_exit_status_is_the_programs(package: Callable[..., Path], image: Path) -> None:
    assert execute(package(**script("exit 3")), image).returncode == 3
    assert execute(package(**script("kill -9 $$")), image).returncode == KILLED
    absent = execute(package(ApplicationPath="/bin/absent"), image)
    assert (absent.returncode, absent.stdout) == (127, "")


def test_environment_is_what_the_package_says(package: Callable[..., Path], image: Path) -> None:
    path = package(
        ApplicationPath="/bin/env",
        EnvironmentVariables=["A=1", "EMPTY=", "OURS=signed"],
        HostEnvironmentVariables=["TESTNAME", "OURS", "UNSET"],
    )
    lines = output(path, image, env={"TESTNAME": "x y", "OURS": "host", "OTHER": "no"}).splitlines()
    # bubblewrap sets PWD.
    assert sorted(line for line in lines if not line.startswith("PWD=")) == [
        "A=1",
        "EMPTY=",
        "OURS=signed",
        "TESTNAME=x y",
    ]


def test_hostname_and_directory(package: Callable[..., Path], image: Path) -> None:
    path = package(**script("hostname; pwd"), Hostname="box.example", CurrentWorkingDirectory="/work")
    assert output(path, image) == "box.example\n/work\n"
    assert output(package(**script("pwd")), image) == "/\n"


def test_memory_is_bounded(package: Callable[..., Path], image: Path) -> None:
    hungry = {"ApplicationPath": "/bin/tail", "ApplicationParameters": ["/dev/zero"], "MemorySize": "16m"}
    result = execute(package(**hungry), image)
    # A control group kills the program, a resource limit refuses the memory.
    assert result.returncode == KILLED or "out of memory" in result.stderr
    assert output(package(**script("head -c 4000000 /dev/zero | tail | head -c 1 | cat -v"), MemorySize="16m"), image)
    assert output(package(ApplicationParameters=["small"], MemorySize="8m"), image) == "small\n"


def test_what_is_written_is_bounded_too(package: Callable[..., Path], image: Path) -> None:
    write = "dd if=/dev/zero of={0}/x bs=64k count=144 2>/dev/null || echo full; rm {0}/x"
    path = package(**script(write.format("/work")), MemorySize="8m")
    assert output(path, image) == "full\n"
    text = f"{write.format('/tmp')}; {write.format('/ram')}"
    path = package(**script(text), MemorySize="8m", Mount=[{"Target": "/ram", "Type": "ramfs"}])
    result = execute(path, image)
    # In a control group, these bytes count as the program's memory.
    assert result.stdout == "full\nfull\n" or result.returncode == KILLED


def test_a_program_is_put_into_its_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
    root = next((root for root in roots if (root / "cgroup.procs").exists() and os.access(root, os.W_OK)), None)
    if root is None:
        pytest.skip("no control groups of version 2 that may be changed")
    group = root / f"mystfuse-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group can be made")
    monkeypatch.setattr("mystfuse.container.resource_limits.make_group", lambda settings: (group, frozenset(settings)))
    with limited_resources(1 << 24) as limits:
        said = subprocess.run(
            ["cat", "/proc/self/cgroup"],
            preexec_fn=limits.enter,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert f"0::/{group.name}\n" in said.stdout
    assert not group.exists()


def test_a_control_group_is_made_where_it_can_be(tmp_path: Path) -> None:
    """On plain files: the group that we choose, and the limits that we write. (No kernel enforces them here.)"""
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    own = root / "user.slice/shell.scope"
    own.mkdir(parents=True)
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("3:pids:/a\n1:name=systemd:/x\n0::/user.slice/shell.scope\n")
    memory = {"memory": {"memory.max": "1048576"}}
    assert make_group(memory, proc, (root,)) is None
    (root / "cgroup.controllers").write_text("memory pids\n")
    (own / "cgroup.subtree_control").write_text("\n")
    (root / "user.slice/cgroup.subtree_control").write_text("cpu pids\n")
    assert make_group(memory, proc, (tmp_path / "absent", root)) is None
    (root / "user.slice/cgroup.subtree_control").write_text("cpu memory\n")
    left_behind = root / "user.slice/mystfuse-99999999"
    left_behind.mkdir()
    # A real control group's directory has files as soon as it exists; this one has none, so we remove it.
    assert make_group(memory, proc, (root,)) is None
    assert make_pids_group(10, proc, root) is None
    assert sorted(os.listdir(root / "user.slice")) == ["cgroup.subtree_control", "shell.scope"]


def test_each_controller_that_is_there_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On plain files: the test makes the files that the kernel would make in a new group."""
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    (root / "a").mkdir(parents=True)
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("3:pids:/a\n0::/\n")
    (root / "cgroup.controllers").touch()
    for place in root, root / "a":
        (place / "cgroup.procs").touch()
    make = Path.mkdir

    def mkdir(path: Path, *words: Any) -> None:
        make(path, *words)
        for name in "memory.max", "pids.max", "cgroup.procs":
            (path / name).touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    settings = {"memory": {"memory.max": "77", "memory.swap.max": "0"}, "pids": {"pids.max": "9"}}
    for control, expected in ("memory pids", {"77", "9"}), ("memory", {"77", ""}), ("cpu pids", {"", "9"}):
        (root / "cgroup.subtree_control").write_text(f"{control}\n")
        made = make_group(settings, proc, (root,))
        assert made is not None and made[1] == set(control.split()) - {"cpu"}
        assert {(made[0] / name).read_text() for name in ("memory.max", "pids.max")} == expected
        shutil.rmtree(made[0])
    old = make_pids_group(9, proc, root)
    assert old is not None and old.parent == root / "a" and (old / "pids.max").read_text() == "9"


def test_mounts(package: Callable[..., Path], image: Path, data_image: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "file").write_text("from the host\n")
    text = (
        "cat /host/file /ro/file /one/file /data/data; echo x >> /one/file || echo read-only; ls -A /ram;"
        " touch /ram/x /host/new /data/new;"
        "touch /ro/x || echo read-only; touch /rodata/x || echo read-only; touch /roram/x || echo read-only"
    )
    mounts = [
        {"Target": "/host", "Type": "hostfs"},
        {"Target": "/ro", "Type": "hostfs", "Flags": ["ro"]},
        {"Target": "/one/file", "Type": "hostfs", "Flags": ["ro"]},
        {"Target": "/data", "Type": "ext2", "Flags": ["rw"]},
        {"Target": "/rodata", "Type": "ext2", "Flags": ["ro"]},
        {"Target": "/ram", "Type": "ramfs"},
        {"Target": "/roram", "Type": "ramfs", "Flags": ["ro"]},
    ]
    path = package("--roothash", root_hash(data_image), **script(text), Mount=mounts)
    sources = {"/host": host, "/ro": host, "/one/file": host / "file", "/data": data_image, "/rodata": data_image}
    options = [f"--mount={source}={target}" for target, source in sources.items()]
    result = execute(path, image, *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "from the host\n" * 3 + "from the image\n" + "read-only\n" * 4
    assert (host / "new").exists()
    assert not (host / "x").exists()

    for index, target in enumerate(sources):
        missing = refused_run(path, *options[:index], *options[index + 1 :])
        assert f"give --mount SOURCE={target}" in missing
    for wrong, what in (
        (f"{host}=/other", "not a target that the package declares"),
        (f"{host}=/ram", "not a target that the package declares"),
        (f"{host}=/host", "given twice"),
    ):
        assert what in refused_run(path, *options, "--mount", wrong)
    for wrong in (
        f"{data_image}=/host",
        f"{host}=/data",
        f"{host}=/host,ro",
        f"{data_image}=/data,insecure",
        f"{data_image}=/data,uid=0",
    ):
        target = wrong.rpartition("=/")[2].split(",")[0]
        others = [option for option in options if not option.endswith(f"=/{target}")]
        assert wrong.split(",")[0] in refused_run(path, *others, "--mount", wrong)


def test_a_mount_has_its_own_trust(
    package: Callable[..., Path], image: Path, data_image: Path, image_keys: Keys, keys: Keys, tmp_path: Path
) -> None:
    (tmp_path / "data.roothash").write_text(root_hash(data_image) + "\n")
    shutil.copy(image_keys[0], tmp_path / "image.pem")
    shutil.copy(keys[0], tmp_path / "other.pem")

    def mounting(source: Path, **trust: str) -> subprocess.CompletedProcess[str]:
        path = package(**script("echo ran"), Mount=[{"Target": "/data", "Type": "ext2", **trust}])
        return execute(path, image, "--mount", f"{source}=/data")

    # The package's list has only the root hash of the root file system.
    assert mounting(image).stdout == "ran\n"
    assert mounting(data_image).returncode == NOT_TRUSTED
    assert mounting(data_image, RootHash=root_hash(data_image)).stdout == "ran\n"
    # Only the mount's own trust counts for it.
    assert mounting(image, Roothash="data.roothash").returncode == NOT_TRUSTED
    assert mounting(image, PublicKey="image.pem").stdout == "ran\n"
    assert mounting(data_image, PublicKey="other.pem", Roothash="data.roothash").stdout == "ran\n"


def test_encrypted_images(package: Callable[..., Path], image: Path, tmp_path: Path) -> None:
    key, wrong, tree, secret = (tmp_path / name for name in ("key", "wrong", "tree", "secret.img"))
    for path in key, wrong:
        path.touch(mode=0o600)
        path.write_bytes(os.urandom(64))
    (tree / "bin").mkdir(parents=True)
    shutil.copy(run("sh", "-c", "command -v busybox").stdout.strip(), tree / "bin/cat")
    (tree / "data").write_text("secret\n")
    assert mystfuse("mkext2", "--encrypt", key, tree, secret).returncode == 0
    trust = ("--roothash", root_hash(secret))
    cat = {"ApplicationPath": "/bin/cat", "ApplicationParameters": ["/data"]}
    path = package(*trust, **cat)
    assert output(path, secret, "--key-file", key) == "secret\n"
    assert execute(path, secret, "--key-file", wrong).returncode == KEY
    assert execute(path, secret, stdin=subprocess.DEVNULL).returncode == KEY
    path = package(*trust, **script("cat /x/data"), Mount=[{"Target": "/x", "Type": "ext2"}])
    assert output(path, image, "--mount", f"{secret}=/x,keyfile={key}") == "secret\n"


def test_a_package_can_be_executed(package: Callable[..., Path], image: Path, path_with_mystfuse: str) -> None:
    path = package(HostApplicationParameters=True)
    odd = path.with_name('it\'s "$0" \\n')
    path.rename(odd)
    for command, environment in (
        ([str(odd), f"--rootfs={image}", "a  b", "$c"], {}),
        ([f"./{odd.name}", "a  b", "$c"], {"MYST_ROOTFS": str(image)}),
    ):
        result = subprocess.run(
            command,
            cwd=odd.parent,
            env={**os.environ, "PATH": path_with_mystfuse, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (result.returncode, result.stdout) == (0, "a  b $c\n"), result


def test_without_mystfuse_it_says_so(package: Callable[..., Path], tmp_path: Path) -> None:
    path = package()
    for shell in ([], ["/bin/dash"], ["/bin/bash"]):
        result = subprocess.run(
            [*shell, str(path)],
            env={"PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (result.returncode, result.stdout) == (127, "")
        assert result.stderr == f"{path}: mystfuse is not in PATH: install it, or put where it is into PATH\n"


def test_an_ordinary_user_runs_a_package(
    package: Callable[..., Path], image: Path, data_image: Path, open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    mounts = [
        {"Target": "/host", "Type": "hostfs", "Flags": ["ro"]},
        {"Target": "/data", "Type": "ext2"},
        {"Target": "/ram", "Type": "ramfs", "Flags": ["ro"]},
    ]
    text = (
        'cat /data/data; touch /new /data/new && echo written; touch /host/x /ram/x || stat -c %U:%n /host; echo "$0"'
    )
    path = package(
        "--roothash",
        root_hash(data_image),
        ApplicationPath="/bin/sh",
        ApplicationParameters=["-c", text, "zero"],
        MemorySize="32m",
        Mount=mounts,
    )
    for file in path, image, data_image:
        shutil.copy(file, open_tmp_path)
    (open_tmp_path / "host").mkdir()
    (open_tmp_path / "host").chmod(0o777)
    result = run(
        *ordinary_user,
        "run",
        open_tmp_path / "package",
        f"--rootfs={open_tmp_path / image.name}",
        f"--mount={open_tmp_path}/host=/host",
        f"--mount={open_tmp_path / data_image.name}=/data",
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[:2] == ["from the image", "written"]
    assert result.stdout.splitlines()[-1] == "zero"
    assert os.listdir(open_tmp_path / "host") == []


@pytest.mark.parametrize("alias", ["exec-sgx", "exec-linux"])
def test_exec_by_its_old_names(alias: str, image: Path) -> None:
    assert mystfuse(alias, image, "/bin/cat", "/hello").stdout == "from the root\n"
