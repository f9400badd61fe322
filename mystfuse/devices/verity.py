"""The verity device: **the trust boundary**. It checks every block against the hash tree before it returns it.

A digest verifies the block below it. The root hash verifies the top hash block; a verified hash block is kept in memory
of our own, and not read again while it is there. The path from a data block to the root is read and checked when the
block is first needed, all its missing levels in one go, so mounting costs the same for every size.

The checks themselves, and what is kept, are the kernels' (``crypto/hash_tree.py``), which the fast path shares.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NoReturn, Protocol

import trio

from mystfuse.crypto.hash_tree import TreePaths, TreeVerifier
from mystfuse.crypto.hashing import BlockHasher
from mystfuse.devices.damaged_blocks import DamagedBlocks
from mystfuse.devices.device import Device, Extent, PendingRead, aligned, coalesce, cut_runs, read_now, run_of
from mystfuse.errors import FormatError, ImageReadError, IntegrityError, MystfuseError
from mystfuse.formats.verity import TreeGeometry, VeritySuperblock
from mystfuse.kernels.interface import HashBlockKey, TreeShape

log = logging.getLogger(__name__)

HASH_CACHE_BYTES = 16 << 20
"""Verified hash blocks to keep: enough for 2 GiB of data at the usual 1/128."""

MAX_STEP = 8 << 20
"""Bytes of data and hash blocks that one step of a request may need."""

_MAX_AGAIN = 1 << 20
"""Bytes that are read again at a time."""

_MAX_LOGGED = 4096
"""Remembered damaged blocks, so that each is logged once."""


class UnverifiedDevice(Device, Protocol):
    """The device below."""

    async def read_several(
        self,
        requests: Sequence[Sequence[Extent]],
        deliver: Callable[[int, list[memoryview] | ImageReadError], None],
    ) -> None:
        """Several requests at once, none of them empty. ``deliver`` gets the number of each, and the result or error of
        its ``read``, in order and as soon as possible."""
        ...

    async def read_again(self, extents: Sequence[Extent], since: float) -> list[memoryview] | None:
        """The bytes of each extent from elsewhere than last time, when they were wrong; None: there is no other place.

        Args:
            since: when the request began that needs them, in ``trio.current_time()``.

        Raises:
            ImageReadError: reading failed.
        """
        ...


class VerityDevice:
    """The data area of a verity image, each byte verified by ``root_hash``.

    Args:
        unverified: the device below, with the tree and the data.
        root_hash: trusted by the user.
        superblock, geometry: the place of the tree; need not be trusted: a wrong tree has a wrong root.
    """

    def __init__(
        self,
        unverified: UnverifiedDevice,
        superblock: VeritySuperblock,
        geometry: TreeGeometry,
        root_hash: bytes,
        cache_bytes: int = HASH_CACHE_BYTES,
    ) -> None:
        if len(root_hash) != superblock.digest_size:
            raise FormatError(
                f"the root hash has {len(root_hash)} bytes, but the tree is {superblock.algorithm} with "
                f"{superblock.digest_size}"
            )
        self.size = superblock.data_size
        self.blocks_failed = 0
        """Counts each read that failed: a block that is read twice counts twice."""
        self.blocks_mended = 0
        """Counts blocks that were right when they were read again from elsewhere."""
        self.on_damage: Callable[[IntegrityError], None] = lambda error: None
        """Called for every read that fails because of damage, before the error is raised."""
        self._unverified = unverified
        self._attempts: int = getattr(unverified, "attempts", 1)
        self.superblock = superblock
        self.geometry = geometry
        self.root_hash = root_hash
        self._hasher = BlockHasher(superblock.algorithm, superblock.salt, superblock.hash_type)
        self.tree = TreeVerifier(
            self._hasher,
            TreeShape(
                superblock.data_blocks,
                superblock.data_block_size,
                superblock.hash_block_size,
                geometry.digests_per_block,
                [(level.offset, level.blocks) for level in geometry.levels],
            ),
            root_hash,
            cache_bytes,
        )
        self._loading: dict[HashBlockKey, _Load] = {}
        self._logged: set[tuple[int, int]] = set()

    @property
    def blocks_verified(self) -> int:
        """Those of the fast path are among them."""
        return self.tree.blocks_verified

    @property
    def hash_blocks_verified(self) -> int:
        """Those of the fast path are among them."""
        return self.tree.hash_blocks_verified

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        """The verified bytes of each extent. Damage is counted, logged, and reported to ``on_damage``.

        Args:
            quietly: none of that, unless the error's ``report`` is called.

        Raises:
            DamagedBlocks: a data block, or a hash block on its path, is corrupted. Nothing is returned
                then, not even the extents that were fine.
            ImageReadError: reading failed, or the bytes lie outside the device.
        """
        result: list[memoryview] = []
        try:
            for step, runs in self._steps(extents):
                result += cut_runs(step, runs, await self._read_runs(runs))
        except DamagedBlocks as damage:
            if not quietly:
                damage.report()
            raise
        return result

    async def digests(self, blocks: Sequence[Extent]) -> list[bytes]:
        """The verified digests of data blocks, which are not read.

        Args:
            blocks: runs of whole blocks, in order, none overlapping.

        Returns:
            For each run the digests of its blocks, joined.

        Raises:
            DamagedBlocks: a hash block on the way to them is corrupted.
            ImageReadError: reading one failed.
            ValueError: other extents.
        """
        # They may be in memory, like data.
        await trio.lowlevel.checkpoint_if_cancelled()
        paths, _ = await self._load(blocks, needs_data=False)
        return paths.digests()

    async def hash_blocks(self, level: int, numbers: Sequence[int], digests: Sequence[bytes]) -> list[bytes]:
        """Hash blocks of a level, checked by their digests.

        Args:
            level: 0 is the lowest.
            numbers: of the blocks within it, ascending.
            digests: one a block, out of verified blocks, or the root hash.

        Raises:
            DamagedBlocks: a block does not have its digest.
            ImageReadError: reading failed.
        """
        since = trio.current_time()
        extents = [self._hash_block_extent((level, number)) for number in numbers]
        unverified = _parts_of(extents, await self._unverified.read(extents))
        blocks = [bytes(part) for part in unverified]
        for index, digest in enumerate(digests):
            if self._has_digest(blocks[index], digest):
                continue
            again = await self._read_good(extents[index], partial(self._has_digest, digest=digest), since)
            if again is None:
                self._refuse((level, numbers[index]))
            self._note_mended([(level, numbers[index])])
            blocks[index] = bytes(again)
        return blocks

    def _has_digest(self, block: bytes | memoryview, digest: bytes) -> bool:
        return hmac.compare_digest(self._hasher.digest(block), digest)

    async def _read_again(self, extents: Sequence[Extent], since: float) -> list[memoryview] | None:
        again = await self._unverified.read_again(extents, since)
        return None if again is None else _parts_of(extents, again)

    async def _read_good(
        self, extent: Extent, is_good: Callable[[memoryview], bool], since: float
    ) -> memoryview | None:
        """A block that was wrong, as it is elsewhere; None: it is not right there either."""
        for _ in range(self._attempts):
            again = await self._read_again([extent], since)
            if again is not None and is_good(again[0]):
                return again[0]
        return None

    def _note_mended(self, blocks: Sequence[tuple[int, int]]) -> None:
        """Count blocks that were wrong and are right now, and say so."""
        self.blocks_mended += len(blocks)
        level, number = blocks[0]
        what = f"data block {number}" if level < 0 else f"hash block {number} of level {level}"
        more = f" and {len(blocks) - 1} others" if len(blocks) > 1 else ""
        log.info("verity: %s%s came corrupted, and right when fetched again", what, more)

    def _refuse(self, key: HashBlockKey) -> NoReturn:
        """Raise the error for a hash block without its digest."""
        level, index = key
        what = f"hash block {index} of level {level} (byte {self._hash_block_extent(key).offset})"
        if level == len(self.geometry.levels) - 1:
            what += " is corrupted: it does not have the root hash"
        else:
            what += " is corrupted"
        raise DamagedBlocks(f"verity: {what}", "", [key], (), self._report)

    def _report(self, damage: DamagedBlocks) -> None:
        self.blocks_failed += len(damage.blocks)
        if not self._logged.issuperset(damage.blocks):
            log.error("%s", damage)
            if len(self._logged) >= _MAX_LOGGED:
                self._logged.clear()
            self._logged.update(damage.blocks[:_MAX_LOGGED])
        self.on_damage(damage)

    def begin(self, extents: Sequence[Extent]) -> PendingRead | None:
        """See ``Device.begin``: the hash blocks on the paths of the data have been checked when it returns."""
        steps = self._steps(extents)
        if len(steps) > 1:
            return None
        runs = steps[0][1] if steps else []
        paths = self.tree.paths(runs)
        missing = paths.missing()
        if missing:
            wanted = [*map(self._hash_block_extent, missing)]
            unverified = read_now(self._unverified, wanted)
            if unverified is None:
                return None
            for key, part in zip(missing, _parts_of(wanted, unverified), strict=True):
                if not paths.give(key, part):
                    return None
        data = self._unverified.begin(runs)
        return None if data is None else partial(self._finish, extents, runs, data, paths)

    def _finish(
        self, extents: Sequence[Extent], runs: list[Extent], data: PendingRead, paths: TreePaths
    ) -> list[memoryview] | None:
        """Read and check the data of a pending read, in any thread."""
        unverified = data()
        if unverified is None or paths.mismatches(_parts_of(runs, unverified)):
            return None
        return cut_runs(extents, runs, unverified)

    def _steps(self, extents: Sequence[Extent]) -> Sequence[tuple[Sequence[Extent], list[Extent]]]:
        """The extents in order, as many at a time as fill MAX_STEP with the data and hash blocks they lie in; and the
        runs of whole blocks that they lie in.

        With blocks of 512 KiB, a few scattered bytes can need a lot.
        """
        for extent in extents:
            if extent.offset < 0 or extent.length <= 0 or extent.end > self.size:
                raise ImageReadError(f"verity: bytes {extent.offset} to {extent.end} are outside the device")
        overhead = self.superblock.data_block_size + self.superblock.hash_block_size
        if sum([extent.length for extent in extents]) + len(extents) * overhead <= MAX_STEP:
            return [(extents, self._runs(extents))] if extents else []
        steps: list[tuple[Sequence[Extent], list[Extent]]] = []
        first = filled = 0
        for index, extent in enumerate(extents):
            need = extent.length + overhead
            if filled and filled + need > MAX_STEP:
                steps.append((extents[first:index], self._runs(extents[first:index])))
                first, filled = index, 0
            filled += need
        steps.append((extents[first:], self._runs(extents[first:])))
        return steps

    def _runs(self, extents: Sequence[Extent]) -> list[Extent]:
        """The runs of whole data blocks that extents lie in, sorted, each by itself."""
        block_size = self.superblock.data_block_size
        if len(extents) == 1:
            return [aligned(extents[0], block_size)]
        return coalesce([aligned(extent, block_size) for extent in extents], self.size)

    async def _read_runs(self, runs: list[Extent]) -> list[memoryview]:
        """Read and check runs of whole data blocks."""
        since = trio.current_time()
        paths, unverified = await self._load(runs)
        mismatches = paths.mismatches(unverified)
        if mismatches:
            unverified, mismatches = await self._mend(runs, paths, unverified, mismatches, since)
        if mismatches:
            numbers = ", ".join(map(str, mismatches[:8])) + (", ..." if len(mismatches) > 8 else "")
            what = f"data block {numbers} is" if len(mismatches) == 1 else f"data blocks {numbers} are"
            size = self.superblock.data_block_size
            raise DamagedBlocks(
                f"verity: {what} corrupted",
                f"blocks of {size} bytes",
                [(-1, number) for number in mismatches],
                [Extent(number * size, size) for number in mismatches],
                self._report,
            )
        return unverified

    async def _mend(
        self, runs: list[Extent], paths: TreePaths, unverified: list[memoryview], mismatches: list[int], since: float
    ) -> tuple[list[memoryview], list[int]]:
        """The bytes of runs with those blocks read again that are corrupted, and which ones still are."""
        size = self.superblock.data_block_size
        parts, left = unverified, mismatches
        for attempt in range(self._attempts):
            wanted = coalesce([Extent(number * size, size) for number in left], _MAX_AGAIN)
            again = await self._read_again(wanted, since)
            if again is None:
                break
            if not attempt:
                # Not in place: others may have the same memory.
                parts = [memoryview(bytearray(part)) for part in unverified]
            for extent, part in zip(wanted, again, strict=True):
                index = run_of(runs, extent.offset)
                start = extent.offset - runs[index].offset
                parts[index][start : start + extent.length] = part
            left = paths.mismatches(parts)
            if not left:
                break
        if mended := sorted({*mismatches} - {*left}):
            self._note_mended([(-1, number) for number in mended])
        return parts, left

    async def _load(self, runs: Sequence[Extent], needs_data: bool = True) -> tuple[TreePaths, list[memoryview]]:
        """The *verified* paths of ``runs``, and their *unverified* bytes, if needed, fetched together."""
        paths = self.tree.paths(runs)
        data: list[memoryview] | None = None if needs_data else []
        while True:
            missing = paths.missing()
            others = [self._loading[key] for key in missing if key in self._loading]
            for load in others:
                await load.is_over.wait()
                # Its error is ours too: asking again would take as long again. Without a result, since that task was
                # cancelled, this one loads the block itself.
                if load.error is not None:
                    raise load.error
            if others:
                continue
            if missing or data is None:
                data = await self._fetch(missing, paths, runs if data is None else [], data)
                continue
            return paths, data

    async def _fetch(
        self,
        missing: list[HashBlockKey],
        paths: TreePaths,
        runs: Sequence[Extent],
        data: list[memoryview] | None,
    ) -> list[memoryview]:
        """Fetch hash blocks and data together, check the hash blocks top down, and keep the good ones."""
        since = trio.current_time()
        loads = {key: _Load() for key in missing}
        self._loading.update(loads)
        errors: dict[HashBlockKey, MystfuseError] = {}
        refused: dict[HashBlockKey, memoryview] = {}
        # Each hash block by itself: other tasks may need one of them alone.
        wanted = [[self._hash_block_extent(key)] for key in missing]
        fetched: list[list[memoryview] | ImageReadError] = []

        def deliver(number: int, outcome: list[memoryview] | ImageReadError) -> None:
            if number == len(missing):
                fetched.append(outcome)
                return
            key = missing[number]
            try:
                part = _parts_of(wanted[number], outcome)[0]
                self._check_above(key, errors)
            except (IntegrityError, ImageReadError) as error:
                errors[key] = loads[key].error = error
            else:
                if self._above(key) in refused or not paths.give(key, part):
                    refused[key] = part
                    return
            self._end_load(key, loads[key])

        try:
            await self._unverified.read_several([*wanted, runs] if runs else wanted, deliver)
            for level in sorted({level for level, _ in refused}, reverse=True):
                parts = {key: refused[key] for key in refused if key[0] == level}
                found = await self._mend_level(parts, paths, errors, since)
                errors |= found
                for key in parts:
                    loads[key].error = found.get(key)
                    self._end_load(key, loads[key])
        finally:
            for key, load in loads.items():
                self._end_load(key, load)
        if errors:
            raise next(iter(errors.values()))
        return _parts_of(runs, fetched[0]) if data is None else data

    def _end_load(self, key: HashBlockKey, load: _Load) -> None:
        if self._loading.get(key) is load:
            del self._loading[key]
            load.is_over.set()

    def _above(self, key: HashBlockKey) -> HashBlockKey:
        level, index = key
        return level + 1, index // self.geometry.digests_per_block

    def _check_above(self, key: HashBlockKey, errors: Mapping[HashBlockKey, MystfuseError]) -> None:
        """Raise what is wrong with the hash block above one, if something is."""
        if (error := errors.get(self._above(key))) is not None:
            raise error

    async def _mend_level(
        self,
        refused: Mapping[HashBlockKey, memoryview],
        paths: TreePaths,
        above: Mapping[HashBlockKey, MystfuseError],
        since: float,
    ) -> dict[HashBlockKey, MystfuseError]:
        """Have hash blocks of a level checked that were refused, or came before those above were there; the second
        time, by what is read again, all at once.

        Args:
            above: what is wrong with hash blocks above.
            since: when the request began.

        Returns:
            What is wrong with those that are still not the right ones.
        """
        errors: dict[HashBlockKey, MystfuseError] = {}
        left: list[HashBlockKey] = []
        for key, part in refused.items():
            try:
                self._check_above(key, above)
            except (IntegrityError, ImageReadError) as error:
                errors[key] = error
            else:
                left += [] if paths.give(key, part) else [key]
        try:
            for _ in range(self._attempts):
                again = await self._read_again([*map(self._hash_block_extent, left)], since) if left else None
                if again is None:
                    break
                good = [key for key, part in zip(left, again, strict=True) if paths.give(key, part)]
                for key in good:
                    self._note_mended([key])
                left = [key for key in left if key not in set(good)]
        except ImageReadError as error:
            return errors | dict.fromkeys(left, error)
        for key in left:
            try:
                self._refuse(key)
            except IntegrityError as error:
                errors[key] = error
        return errors

    def _hash_block_extent(self, key: HashBlockKey) -> Extent:
        level, index = key
        size = self.superblock.hash_block_size
        return Extent(self.geometry.levels[level].offset + index * size, size)


class _Load:
    """A hash block that one task loads, and others may wait for."""

    def __init__(self) -> None:
        self.is_over = trio.Event()
        self.error: MystfuseError | None = None
        """Why reading it failed. None too if the task was cancelled before it had a result."""


def _parts_of(extents: Sequence[Extent], unverified: Sequence[memoryview] | ImageReadError) -> list[memoryview]:
    """The bytes that came for extents.

    Raises:
        ImageReadError: it is that, or as many bytes did not come.
    """
    if isinstance(unverified, ImageReadError):
        raise unverified
    for extent, part in zip(extents, unverified, strict=True):
        if len(part) != extent.length:
            raise ImageReadError(f"verity: {len(part)} bytes came for the {extent.length} at {extent.offset}")
    return list(unverified)
