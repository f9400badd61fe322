"""Guards against other users of the machine, against programs and packages that mystfuse runs, and against
accidents."""

from __future__ import annotations

from tests.guards.guard import Guard

_CONFINEMENT = "mystfuse/system/confinement.py"
_FILTERS = "mystfuse/system/seccomp_filters.py"
_KEEPER = "mystfuse/mounting/keeper_server.py"
_ATOMIC_FILE = "mystfuse/system/atomic_file.py"
_CONTAINER = "mystfuse/cli/container.py"

OF_MACHINES: tuple[Guard, ...] = (
    # The daemon and the keeper.
    Guard(
        "a daemon's bounding set is empty",
        _CONFINEMENT,
        "libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)",
        "pass",
        ("mounting/test_privileges.py::test_every_thread_of_the_daemon_is_without_privileges",),
    ),
    Guard(
        "system calls are filtered",
        _CONFINEMENT,
        "seccomp_bpf.install(make())",
        "make()",
        (
            "mounting/test_confinement.py::test_calls_that_no_daemon_makes_end_it",
            "mounting/test_confinement.py::test_the_daemon_of_an_ordinary_user_is_filtered",
        ),
    ),
    Guard(
        "calls that only an attacker makes end the process",
        _FILTERS,
        "policy |= dict.fromkeys(_DEADLY, KILL_PROCESS)",
        "policy |= dict.fromkeys(_DEADLY, _NOT_PERMITTED)",
        (
            "mounting/test_confinement.py::test_calls_that_no_daemon_makes_end_it",
            "mounting/test_confinement.py::test_a_keeper_that_is_taken_over_neither_runs_nor_binds_nor_talks",
        ),
    ),
    Guard(
        "no memory has code",
        _FILTERS,
        "no_code: Rules = [Rule(ALLOW, [Argument(2, 0, _PROT_EXEC)]), refused]",
        "no_code: Rules = ALLOW",
        ("mounting/test_confinement.py::test_calls_that_a_library_may_try_are_refused",),
    ),
    Guard(
        "root's daemon is a user of its own",
        _CONFINEMENT,
        "user = _become_own_user(libc) if own_user and os.geteuid() == 0 else None",
        "user = None",
        (
            "mounting/test_confinement.py::test_the_daemon_of_root_is_a_user_of_its_own_in_an_empty_directory",
            "mounting/test_confinement.py::test_nothing_of_others_can_be_changed_or_reached_by_its_path",
            "mounting/test_confinement.py::test_what_serves_plaintext_to_mke2fs_is_confined",
        ),
    ),
    Guard(
        "root's daemon has an empty root",
        _CONFINEMENT,
        'os.chroot(".")',
        "pass",
        (
            "mounting/test_confinement.py::test_the_daemon_of_root_is_a_user_of_its_own_in_an_empty_directory",
            "mounting/test_confinement.py::test_nothing_of_others_can_be_changed_or_reached_by_its_path",
        ),
    ),
    Guard(
        "Landlock is in force",
        "mystfuse/system/landlock.py",
        "        libc.system_call(_SYS_RESTRICT_SELF, ruleset, 0)\n",
        "",
        ("mounting/test_confinement.py::test_landlock_alone_opens_makes_removes_and_runs_nothing",),
    ),
    Guard(
        "the keeper has two capabilities",
        _CONFINEMENT,
        "drop_privileges(keep=1 << _CAP_SYS_ADMIN | 1 << CAP_DAC_READ_SEARCH)",
        "pass",
        ("mounting/test_confinement.py::test_the_keeper_of_root_may_do_nothing_but_mount",),
    ),
    Guard(
        "the keeper binds and moves nothing",
        _FILTERS,
        'policy["mount"] = [Rule(ALLOW, [Argument(3, 0, _OTHER_THAN_MOUNTING)]), Rule(KILL_PROCESS)]',
        'policy["mount"] = ALLOW',
        ("mounting/test_confinement.py::test_a_keeper_that_is_taken_over_neither_runs_nor_binds_nor_talks",),
    ),
    Guard(
        "what is unmounted is what was mounted",
        "mystfuse/mounting/unmount.py",
        "if os.readlink(path) != parent or find_mount(mountpoint) != expected:",
        "find_mount(mountpoint)\n        if False:",
        ("mounting/test_races.py::test_a_race_while_unmounting_takes_no_other_mount",),
    ),
    Guard(
        "a request of the keeper is a whole message",
        _KEEPER,
        "if message == request.value",
        "if message in request.value",
        (
            "mounting/test_keeper.py::test_only_whole_messages_are_requests",
            "mounting/test_keeper.py::test_the_keeper_answers_no_other_message",
        ),
    ),
    Guard(
        "what serves plaintext to mke2fs is confined",
        "mystfuse/build/encrypted_file.py",
        "        confine()\n",
        "",
        ("mounting/test_confinement.py::test_what_serves_plaintext_to_mke2fs_is_confined",),
    ),
    # Paths and files.
    Guard(
        "what is mounted elsewhere than where it was to be is taken away",
        _KEEPER,
        "        if elsewhere is not None:\n            with suppress(MountError):\n",
        "        if elsewhere is not None:\n            return elsewhere\n            with suppress(MountError):\n",
        ("mounting/test_races.py::test_a_mountpoint_that_is_replaced_is_not_mounted_on",),
    ),
    Guard(
        "a file goes to the directory that was looked at",
        _ATOMIC_FILE,
        "os.link(self.path, name, dst_dir_fd=self._directory, follow_symlinks=True)",
        "os.link(self.path, self.target.parent / name, src_dir_fd=self._directory, follow_symlinks=True)",
        ("mounting/test_races.py::test_a_file_goes_to_the_directory_that_was_there_at_the_start",),
    ),
    Guard(
        "root follows no link of another user",
        "mystfuse/system/output_paths.py",
        "if os.geteuid() == 0 and owner != 0 and not _may_be_roots(owner):",
        "if False:",
        (
            "system/test_output_paths.py::test_root_goes_through_no_link_of_another_user",
            "system/test_output_paths.py::test_no_directory_is_made_through_a_link_of_another_user",
        ),
    ),
    Guard(
        "a command starts isolated",
        "bin/mystfuse",
        'exec "$python" -I "$here" "$@"',
        'exec "$python" "$here" "$@"',
        ("mounting/test_start.py::test_as_pip_installs_them",),
    ),
    Guard(
        "what starts again is as isolated",
        "mystfuse/cli/commands/mount_mystfuse.py",
        "[sys.executable, *interpreter, *call.without_key(receiver)]",
        "[sys.executable, *interpreter[-1:], *call.without_key(receiver)]",
        ("mounting/test_start.py::test_a_key_in_the_options_starts_us_again_as_isolated",),
    ),
    Guard(
        "a mount that another program serves is left alone",
        "mystfuse/mounting/unmount.py",
        "if daemon is None and (server := find_other_server(mount)) is not None:",
        "if (server := None) is not None:",
        ("mounting/test_privileges.py::test_umount_leaves_a_mount_that_another_program_serves",),
    ),
    Guard(
        "a daemon is who serves the mount",
        "mystfuse/mounting/find_daemon.py",
        'if fields[0] == b"Z" or _serves(entry, mount) is False:',
        'if fields[0] == b"Z":',
        ("mounting/test_privileges.py::test_no_process_passes_itself_off_as_the_daemon_of_a_mount",),
    ),
    Guard(
        "a daemon holds no descriptors of its caller",
        "mystfuse/mounting/daemonize.py",
        "close_descriptors(keep | {sender, null})",
        "pass",
        ("mounting/test_privileges.py::test_the_callers_descriptors_are_not_kept",),
    ),
    Guard(
        "what replaces a file has its mode",
        _ATOMIC_FILE,
        "        self._set_mode(mode, mode)\n",
        "",
        ("cli/test_output_files.py::test_every_command_that_replaces_keeps_the_mode",),
    ),
    Guard(
        "what replaces a file is at first for its owner alone",
        _ATOMIC_FILE,
        "self._open(0o600 if replaced is not None and stat.S_ISREG(replaced.st_mode) else mode)",
        "self._open(mode)",
        ("cli/test_output_files.py::test_no_user_gains_access_at_any_moment",),
    ),
    Guard(
        "another user's file in a shared directory is not replaced",
        _ATOMIC_FILE,
        "if is_put_there_by_another(found, self._directory):",
        "if False:",
        ("cli/test_output_files.py::test_another_users_file_in_a_shared_directory_is_not_replaced",),
    ),
    Guard(
        "the control directory is for who mounts",
        "mystfuse/fuse/requests.py",
        "if self.control and not self.control.may_use(uid):",
        "if False:",
        (
            "mounting/test_mount_options.py::test_other_users_see_files_by_their_permissions_and_acls_but_not_the_control_directory",
        ),
    ),
    Guard(
        "a configured file is opened without waiting",
        "mystfuse/system/configured_file.py",
        "os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC",
        "os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC",
        ("trust/test_system_trust.py::test_a_fifo_under_a_configured_name_hangs_no_command",),
    ),
    # Programs that are run.
    Guard(
        "parts of /proc are masked",
        "mystfuse/container/bubblewrap.py",
        "options += _proc_options(MASKED, READ_ONLY)",
        "pass",
        (
            "container/test_containment.py::test_what_container_engines_mask_is_empty",
            "container/test_containment.py::test_nothing_of_the_machine_in_proc_can_be_written",
            "container/test_containment.py::test_a_package_is_contained_as_well",
        ),
    ),
    Guard(
        "a program has a user namespace",
        _CONTAINER,
        "return cls(None, None if container.is_privileged else _make_roots_namespace())",
        "return cls(None, None)",
        ("container/test_containment.py::test_namespaces_are_its_own",),
    ),
    Guard(
        "a program that is root inside has a namespace below that of its mounts",
        _CONTAINER,
        "enter_user_namespace(namespaces.program)",
        "pass",
        (
            "container/test_root_inside.py::test_outside_it_is_the_caller_or_one_of_theirs",
            "container/test_root_inside.py::test_privileged_it_has_power_over_its_own_mounts_alone",
        ),
    ),
    Guard(
        "a program that is root inside has none of the caller's groups",
        _CONTAINER,
        "leave_groups()",
        "pass",
        ("container/test_root_inside.py::test_the_callers_groups_are_not_the_programs",),
    ),
    Guard(
        "a program that is root inside has a bounded number of processes, whoever it becomes",
        "mystfuse/container/user_namespaces.py",
        "bound_user_namespace(processes)",
        "pass",
        ("container/test_root_inside.py::test_processes_are_bounded_however_many_users_they_belong_to",),
    ),
    Guard(
        "a program's system calls are filtered",
        "mystfuse/container/bubblewrap.py",
        'options += ["--seccomp", str(system_calls)]',
        "pass",
        (
            "container/test_containment.py::test_what_containers_may_not_call_is_refused",
            "container/test_containment.py::test_a_package_is_contained_as_well",
        ),
    ),
    Guard(
        "root's program has few capabilities",
        "mystfuse/container/bubblewrap.py",
        'options += ["--cap-drop", "ALL"]',
        "pass",
        ("mounting/test_privileges.py::test_what_a_program_inherits",),
    ),
    Guard(
        "nodes of devices are read-only",
        "mystfuse/container/shared_files.py",
        "(*nodes, os.path.realpath(bubblewrap))",
        "[os.path.realpath(bubblewrap)]",
        ("container/test_shared_files.py::test_the_hosts_device_nodes_stay_unchanged",),
    ),
    Guard(
        "bubblewrap's file is read-only",
        "mystfuse/container/shared_files.py",
        "(*nodes, os.path.realpath(bubblewrap))",
        "nodes",
        ("container/test_shared_files.py::test_the_program_that_starts_it_stays_unchanged",),
    ),
    Guard(
        "a device is known by its number",
        "mystfuse/container/shared_files.py",
        " or (not is_terminal and node.st_rdev == status.st_rdev)",
        "",
        ("container/test_shared_files.py::test_a_null_device_of_another_directory_is_replaced_by_ours",),
    ),
    Guard(
        "a daemon that is not visible is not taken for dead",
        "mystfuse/mounting/unmount.py",
        " and not _is_answered(mount)",
        "",
        ("mounting/test_dead_mounts.py::test_a_mount_that_answers_is_not_stale_whichever_processes_are_visible",),
    ),
    Guard(
        "standard input is read-only",
        "mystfuse/container/shared_files.py",
        "return _open_file(fd, status, flags, name)",
        "return fd",
        ("container/test_shared_files.py::test_a_file_given_for_reading_is_read_only",),
    ),
    Guard(
        "nothing is typed into a terminal",
        "mystfuse/container/seccomp_profile.py",
        "*(Rule(_EPERM, [Argument(1, request)]) for request in (_TIOCSTI, _TIOCLINUX)), ",
        "",
        ("container/test_shared_files.py::test_the_program_types_nothing_into_the_callers_terminal",),
    ),
    Guard(
        "a program has a session keyring of its own",
        _CONTAINER,
        "    leave_session_keyring()\n",
        "",
        ("container/test_containment.py::test_the_callers_session_keyring_is_not_the_programs",),
    ),
    Guard(
        "a program has a bounded number of processes",
        "mystfuse/container/resource_limits.py",
        '_write(group / "cgroup.procs", "0")',
        "pass",
        ("container/test_containment.py::test_the_number_of_processes_is_bounded",),
    ),
    # Packages.
    Guard(
        "a package's signature is verified",
        "mystfuse/trust/package.py",
        "if not signer.verifies(hashlib.sha256(file.signed_part()).digest(), file.signature):",
        "if False:",
        (
            "container/test_package_file.py::test_every_byte_counts",
            "container/test_package_file.py::test_200_random_changes_of_one_byte_are_refused",
        ),
    ),
    # Accidents.
    Guard(
        "a file has its name last",
        _ATOMIC_FILE,
        'return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=self._directory)',
        "return os.open(self.target.name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=self._directory)",
        ("cli/test_kills.py::test_killed_before_it_is_renamed",),
    ),
    Guard(
        "the name of a new file is on disk",
        _ATOMIC_FILE,
        "sync_directory(self._directory)\n",
        "pass\n",
        ("cli/test_output_files.py::test_every_command_has_the_name_on_disk",),
    ),
    Guard(
        "the name of an extracted tree is on disk",
        "mystfuse/tree/extract.py",
        "await _in_thread(sync_directory, parent)",
        "pass",
        ("cli/test_output_files.py::test_extract_has_all_on_disk_before_the_name",),
    ),
    Guard(
        "a file is written to its end",
        _ATOMIC_FILE,
        "view = view[os.write(self.fd, view) :]",
        "view = view[os.write(self.fd, view) and len(view) :]",
        ("cli/test_endings.py::test_a_file_is_written_whole_or_refused",),
    ),
    Guard(
        "asynchronous direct writes are declined",
        "mystfuse/fuse/init_request.py",
        "flags & ~declined",
        "flags",
        (
            "fuse/test_direct_writes.py::test_asynchronous_direct_writes_and_checks_of_pages_by_time_are_declined_and_nothing_else",
        ),
    ),
    Guard(
        "an inode number that is used again has another generation",
        "mystfuse/ext2/filesystem.py",
        "self._next_generation = self._next_generation + 1 & 0xFFFFFFFF",
        "pass",
        ("fuse/test_file_handles.py::test_the_handle_of_a_removed_file_is_stale_and_no_fault_of_the_image",),
    ),
    Guard(
        "a service clears what a killed daemon has left",
        "systemd/mystfuse@.service",
        "ExecStartPre=/usr/local/bin/mystfuse umount --stale -- ${MOUNTPOINT}\n",
        "",
        ("mounting/test_dead_mounts.py::test_the_service_clears_it_when_it_starts_and_not_when_it_has_crashed",),
    ),
    Guard(
        "standard descriptors are open before anything else",
        "mystfuse/cli/start.py",
        "        open_standard_descriptors()\n",
        "",
        ("mounting/test_start.py::test_mounts_with_each_choice_of_closed_descriptors",),
    ),
    Guard(
        "too little memory is refused before anything is loaded",
        "mystfuse/cli/start.py",
        "if 0 <= size < least << 20:",
        "if False:",
        ("mounting/test_start.py::test_little_memory_is_one_line_for_every_command",),
    ),
    Guard(
        "a mount that is cancelled while it begins is taken away",
        "mystfuse/api/mount.py",
        "        except BaseException:\n            await Operation(self._clear).run_async(shield=True)\n",
        "        except ZeroDivisionError:\n",
        ("api/test_cancellation.py::test_a_mount_cancelled_between_mounting_and_its_report",),
    ),
    Guard(
        "the end of a block is not cancelled",
        "mystfuse/system/blocking.py",
        "with trio.CancelScope(shield=shield):",
        "with trio.CancelScope():",
        (
            "api/test_cancellation.py::test_a_mount_cancelled_at_every_point",
            "api/test_cancellation.py::test_the_end_of_a_cancelled_block_is_not_cancelled",
        ),
    ),
    Guard(
        "a cancelled caller waits for the operation under way",
        "mystfuse/system/blocking.py",
        "            if not self._give_up():\n"
        "                with trio.CancelScope(shield=True):\n"
        "                    await done.wait()\n",
        "            self._give_up()\n",
        ("api/test_cancellation.py::test_a_mount_cancelled_between_mounting_and_its_report",),
    ),
    # Secrets.
    Guard(
        "keys are wiped",
        "mystfuse/crypto/secret.py",
        "self._memory[:] = bytes(len(self._memory))",
        "pass",
        (
            "image/test_secrets_stay_secret.py::test_keys_are_wiped_once_the_image_is_open",
            "crypto/test_kdf_limit.py::test_giving_up_leaves_no_process",
        ),
    ),
    Guard(
        "there is no core dump",
        "mystfuse/crypto/secret.py",
        "resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))",
        "pass",
        (
            "crypto/test_kdf_limit.py::test_the_process_holds_nothing_and_shows_nothing",
            "image/test_secrets_stay_secret.py::test_there_is_no_core_dump",
        ),
    ),
    Guard(
        "other processes of the same user do not read a process with keys",
        "mystfuse/crypto/secret.py",
        'libc.call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)',
        "pass",
        ("crypto/test_kdf_limit.py::test_others_of_the_same_user_do_not_look_into_the_process",),
    ),
    Guard(
        "what mke2fs writes is encrypted",
        "mystfuse/build/plaintext_file.py",
        "encrypted = memoryview(self._cipher.encrypt(whole, start // SECTOR_SIZE))",
        "encrypted = memoryview(bytes(whole))",
        ("image/test_making_encrypted_images.py::test_all_of_the_payload_is_encrypted",),
    ),
)
