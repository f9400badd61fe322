"""Guards against what stands between a daemon and an image elsewhere: fetcher, cache, network."""

from __future__ import annotations

from tests.guards.guard import Guard

OF_FETCHERS: tuple[Guard, ...] = (
    Guard(
        "what does not verify is read again from elsewhere",
        "mystfuse/devices/verity.py",
        "again = await self._unverified.read_again(extents, since)",
        "again = None",
        (
            "devices/test_verity_again.py::test_damaged_data_is_mended",
            "devices/test_verity_again.py::test_every_damaged_hash_block_is_mended",
        ),
    ),
    Guard(
        "what is read again has its digest",
        "mystfuse/devices/verity.py",
        "left = paths.mismatches(parts)",
        "left: list[int] = []",
        ("devices/test_verity_again.py::test_what_is_wrong_elsewhere_too_is_damage",),
    ),
    Guard(
        "fssig and superblock are read again past the cache",
        "mystfuse/image/unverified_bytes.py",
        "pieces.append((offset, again))",
        "pass",
        ("image/test_unverified_bytes.py::test_what_a_cache_has_changed_is_read_again",),
    ),
    Guard(
        "without a hash tree nothing comes from a cache",
        "mystfuse/image/pipeline.py",
        "if image.tree is None:\n        bypass_cache(image.source)",
        "if False:\n        bypass_cache(image.source)",
        ("mounting/test_remote_mounts.py::test_without_a_hash_tree_it_is_what_the_server_has",),
    ),
    Guard(
        "a fetcher answers what it was asked",
        "mystfuse/remote/answer_bytes.py",
        "if not 0 <= start < end <= len(self.data):",
        "if False:",
        (
            "remote/test_answer_bytes.py::test_nothing_goes_outside",
            "remote/test_client.py::test_a_hostile_answer_ends_the_connection_with_an_error",
        ),
    ),
    Guard(
        "a fetcher inherits no keys",
        "mystfuse/remote/start_fetcher.py",
        "actions += [(os.POSIX_SPAWN_CLOSE, number) for number in _inheritable()]",
        "pass",
        ("cli/test_remote_images.py::test_the_fetcher_gets_no_descriptor_and_no_variable_that_may_lead_to_keys",),
    ),
)
