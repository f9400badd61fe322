"""Guards of signing, and of the programs that are asked for keys."""

from __future__ import annotations

from tests.guards.guard import Guard

_SIGN = "mystfuse/build/sign.py"
_COMMAND = "mystfuse/cli/commands/sign.py"
_PROGRAM = "mystfuse/system/program_output.py"

OF_SIGNING: tuple[Guard, ...] = (
    Guard(
        "a signature is written at once",
        _SIGN,
        "count = os.pwrite(self._fd, new, offset)",
        "count = os.pwrite(self._fd, new[:512], offset) + os.pwrite(self._fd, new[512:], offset + 512)",
        ("cli/test_sign_in_place.py::test_the_block_is_written_at_once_and_synced",),
    ),
    Guard(
        "one process signs at a time",
        _SIGN,
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        ("cli/test_sign_in_place.py::test_one_process_signs_at_a_time",),
    ),
    Guard(
        "a file that has changed meanwhile is not signed",
        _SIGN,
        "if Fssig.parse(before) != old or os.lseek(self._fd, 0, os.SEEK_END) != self.source.size:",
        "if False:",
        ("cli/test_sign_in_place.py::test_an_image_that_is_changed_or_replaced_meanwhile_is_left_alone",),
    ),
    Guard(
        "what a mount would refuse is not signed",
        _COMMAND,
        "check_contents(opened, Keys(), io_timeout, progress)",
        "pass",
        ("cli/test_sign.py::test_what_a_mount_would_refuse_is_not_signed",),
    ),
    Guard(
        "a signature that was made elsewhere is verified",
        _COMMAND,
        "if not keys[0].verifies(fssig.root_hash, signature):",
        "if False:",
        ("cli/test_sign.py::test_what_is_no_signature_by_that_key_is_not_attached",),
    ),
    Guard(
        "a signature that was made here is verified",
        "mystfuse/trust/signature.py",
        "if not self.public.verifies(root_hash, signature):",
        "if False:",
        (
            "trust/test_keys.py::test_what_is_no_signature_by_the_public_key_is_never_returned",
            "cli/test_sign_tokens.py::test_whatever_openssl_does_is_one_line_and_changes_nothing",
        ),
    ),
    Guard(
        "openssl gets a PIN in a pipe",
        "mystfuse/trust/openssl_key.py",
        'command += ["-passin", f"fd:{pipe}"]',
        'command += ["-passin", f"pass:{bytes(self.pin.view).decode()}"]',
        ("cli/test_sign_tokens.py::test_the_pin_is_on_no_command_line_and_in_no_environment",),
    ),
    Guard(
        "openssl gets a URI without its PIN",
        "mystfuse/trust/key_uri.py",
        'if name not in ("pin-value", "pin-source", "module-path"):',
        "if True:",
        ("cli/test_sign_tokens.py::test_the_pin_is_on_no_command_line_and_in_no_environment",),
    ),
    Guard(
        "messages have no arguments of a key command",
        "mystfuse/cli/secret_command.py",
        "name = os.path.basename(words[0]) or words[0]",
        "name = command",
        (
            "cli/test_secret_commands.py::test_a_command_that_gives_no_key_is_one_line",
            "cli/test_secret_commands.py::test_no_message_has_more_than_the_programs_name",
        ),
    ),
    Guard(
        "a program that prints a key ends with its children",
        _PROGRAM,
        "os.killpg(process.pid, signal.SIGKILL)",
        "process.kill()",
        (
            "system/test_program_output.py::test_a_program_that_takes_too_long_is_killed_with_its_children",
            "system/test_program_output.py::test_a_signal_to_us_kills_it_with_its_children",
        ),
    ),
)
