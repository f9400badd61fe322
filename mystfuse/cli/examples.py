"""The examples that ``--help`` shows for each command: what most people want of it, in three lines at most.

The tests run each line, in a directory that has the files which the lines name.
"""

from __future__ import annotations

import click

EXAMPLES: dict[str, tuple[str, ...]] = {
    "mystfuse": (
        "mystfuse app.img mnt",
        "mystfuse status",
        "mystfuse umount mnt",
    ),
    "mount": (
        "mystfuse app.img mnt --pubkey public.pem",
        "mystfuse https://example.org/app.img mnt --roothash app.roothash",
        "mystfuse mount --key-file app.key secret.img mnt",
    ),
    "umount": (
        "mystfuse umount mnt",
        "mystfuse umount --commit new.img --sign public.pem:private.pem mnt",
        "mystfuse umount --force mnt",
    ),
    "trace": ("mystfuse trace mnt > app.trace",),
    "status": (
        "mystfuse status",
        "mystfuse status mnt",
        "mystfuse status --json mnt | jq .blocks_failed",
    ),
    "commit": (
        "mystfuse commit --sign public.pem:private.pem mnt new.img",
        "mystfuse commit --force mnt new.img",
        "mystfuse commit --layer changes.tar.gz mnt",
    ),
    "exec": (
        "mystfuse exec --pubkey public.pem app.img /bin/hello",
        "mystfuse exec --mount tree=/data,ro --env LANG app.img /bin/hello",
        "mystfuse exec --commit new.img app.img /bin/hello",
    ),
    "package": ("mystfuse package --pubkey public.pem -o app private.pem config.json",),
    "run": (
        "mystfuse run --signer public.pem --rootfs app.img app",
        "MYST_ROOTFS=app.img ./app",
    ),
    "mkext2": (
        "mystfuse mkext2 tree new.img",
        "mystfuse mkext2 --sign public.pem:private.pem --free 64M tree new.img",
        "mystfuse mkext2 --encrypt app.key --tar tree.tar.gz new.img",
    ),
    "sign": (
        "mystfuse sign --sign public.pem:private.pem app.img",
        "mystfuse sign --print-digest app.img",
        "mystfuse sign --remove app.img",
    ),
    "info": (
        "mystfuse info app.img",
        "mystfuse info --pubkey public.pem --json app.img | jq .trust",
    ),
    "fssig": (
        "mystfuse fssig app.img",
        "mystfuse fssig --roothash app.img > app.roothash",
    ),
    "verify": (
        "mystfuse verify --pubkey public.pem app.img",
        "mystfuse verify --json --roothash app.roothash app.img",
    ),
    "ls": (
        "mystfuse ls -lh app.img /etc",
        "mystfuse ls --pubkey public.pem --json -R app.img",
    ),
    "cat": ("mystfuse cat --pubkey public.pem app.img /etc/hosts",),
    "extract": (
        "mystfuse extract --pubkey public.pem app.img /etc etc",
        "mystfuse extract app.img / everything",
    ),
    "tar": ("mystfuse tar --pubkey public.pem app.img /etc | tar -tv",),
    "oci": (
        "mystfuse oci --pubkey public.pem app.img oci:layout:app",
        "mystfuse oci --entrypoint /bin/hello --user 1000 app.img oci-archive:app.tar",
        "mystfuse oci mnt oci:layout:changed",
    ),
    "push": (
        "mystfuse push app.img oci://registry.example/team/app:v1",
        "mystfuse push --json app.img s3://bucket/app.img",
    ),
    "cache": (
        "mystfuse cache status --cache cache",
        "mystfuse cache clear --cache cache",
    ),
    "diff": (
        "mystfuse diff mnt",
        "mystfuse diff --contents app.img mnt",
        "mystfuse diff --stat --pubkey public.pem app.img tree",
    ),
    "keys": ("mystfuse keys fingerprint public.pem",),
    "completion": (
        "mystfuse completion install",
        "mystfuse completion install --uninstall",
        "mystfuse completion bash",
    ),
    "help": (
        "mystfuse help",
        "mystfuse help verify",
    ),
}
"""By the command's name; ``mystfuse`` is the program's own help."""


def show_examples(command: click.Command, examples: tuple[str, ...]) -> None:
    """Have the help of a command show examples behind its options; no more when it does already."""
    if not examples or "format_epilog" in vars(command):
        return
    show_epilog = command.format_epilog

    def format_epilog(context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            # As they are: a wrapped line could not be copied.
            for line in examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        show_epilog(context, formatter)

    command.format_epilog = format_epilog  # type: ignore[method-assign, assignment]
