"""Key slots by cryptsetup: each opens the image until it is killed, in the order of their priority."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mystfuse.errors import WrongKey
from tests.support.dm_crypt import encrypt_sectors
from tests.support.encrypted_images import write_secret
from tests.support.luks_peers import (
    KEY,
    NO_KEY_AVAILABLE,
    PBKDF2,
    assert_opens,
    assert_refused,
    assert_shows,
    assert_wrong,
    cryptsetup,
    fill,
    luks_format,
    no_progress,
    opened,
)


def add_slots(image: Path, slots: list[Path]) -> None:
    """All but the first passphrase, which formatted the device, each in the slot of its number."""
    for number, file in enumerate(slots[1:], 1):
        cryptsetup("luksAddKey", f"--key-file={slots[0]}", f"--new-keyfile={file}", f"--new-key-slot={number}", *PBKDF2,
                   image)  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
async def test_each_key_slot_opens_the_image_until_it_is_killed(
    version: int, slots: list[Path], plain: Path, scratch: Path
) -> None:
    key, data = secrets.token_bytes(64), plain.read_bytes()[: 64 << 10]
    image = luks_format(scratch / "image", slots[0], key, version=version)
    add_slots(image, slots)
    shutil.copyfile(image, scratch / "all")
    for killed in (0, 3, 7):
        cryptsetup("luksKillSlot", f"--key-file={slots[1]}", image, str(killed))
    cryptsetup("luksRemoveKey", image, slots[5])
    new = write_secret(scratch / "new", b"another passphrase")
    cryptsetup("luksChangeKey", f"--key-file={slots[2]}", *PBKDF2, image, new)
    encrypted = encrypt_sectors("aes-xts-plain64", key, data)
    before, after = fill(scratch / "all", encrypted), fill(image, encrypted)
    for number, file in enumerate(slots):
        await assert_opens(before, data, passphrase=file.read_bytes())
        if number in (1, 4, 6):
            await assert_opens(after, data, passphrase=file.read_bytes())
        else:
            await assert_wrong(after, passphrase=file.read_bytes())
    await assert_opens(after, data, passphrase=new.read_bytes())
    await assert_opens(after, data, key=key)
    assert_refused(after, scratch / "mount", f"--passphrase-file={slots[3]}", status=KEY, because="wrong passphrase")


@pytest.mark.parametrize("version", [1, 2])
async def test_with_all_slots_erased_the_key_is_what_is_left(
    version: int, plain: Path, passphrase: Path, scratch: Path
) -> None:
    key = secrets.token_bytes(64)
    image = luks_format(scratch / "image", passphrase, key, version=version)
    cryptsetup("luksErase", image)
    sealed = fill(image, encrypt_sectors("aes-xts-plain64", key, plain.read_bytes()))
    assert_refused(sealed, scratch / "mount", f"--passphrase-file={passphrase}", status=KEY, because="no key slot")
    await assert_wrong(sealed, key=secrets.token_bytes(64))
    assert_shows(sealed, plain, scratch, f"--key-file={image.with_suffix('.key')}")


async def test_slots_are_tried_by_their_priority(slots: list[Path], plain: Path, scratch: Path) -> None:
    key, data = secrets.token_bytes(64), plain.read_bytes()[: 64 << 10]
    image = luks_format(scratch / "image", slots[0], key, version=2)
    add_slots(image, slots[:5])
    for slot, priority in ((0, "ignore"), (1, "ignore"), (3, "prefer"), (1, "normal")):
        cryptsetup("config", f"--priority={priority}", f"--key-slot={slot}", image)
    ignored = cryptsetup("open", "--test-passphrase", f"--key-file={slots[0]}", image, check=False)
    assert ignored.returncode == NO_KEY_AVAILABLE, "cryptsetup does not try it either"
    sealed = fill(image, encrypt_sectors("aes-xts-plain64", key, data))
    tried: list[int] = []

    def note(what: str, size: int | None) -> AbstractContextManager[Callable[[int], None]]:
        found = re.match(r"key slot (\d+): ", what)
        assert found, what
        tried.append(int(found[1]))
        return no_progress(what, size)

    with pytest.raises(WrongKey):
        async with opened(sealed, passphrase=slots[0].read_bytes(), progress=note):
            pass
    assert tried == [3, 1, 2, 4]
    for number in (1, 2, 3, 4):
        await assert_opens(sealed, data, passphrase=slots[number].read_bytes())


async def test_a_slot_for_another_key_does_not_open_the_image(slots: list[Path], plain: Path, scratch: Path) -> None:
    """LUKS2 keeps unbound keys of any size, made by reencryption or by a user; and tokens."""
    key, data = secrets.token_bytes(64), plain.read_bytes()[: 64 << 10]
    image = luks_format(scratch / "image", slots[0], key, version=2)
    other = write_secret(scratch / "other", secrets.token_bytes(64))
    cryptsetup("luksAddKey", "--unbound", "--key-size=512", f"--volume-key-file={other}", "--key-slot=1", *PBKDF2,
               image, slots[1])  # fmt: skip
    cryptsetup("luksAddKey", "--unbound", "--key-size=72", "--key-slot=2", *PBKDF2, image, slots[2])
    cryptsetup("luksAddKey", f"--key-file={slots[0]}", "--new-key-slot=3", *PBKDF2, image, slots[3])
    cryptsetup("token", "add", "--key-description=a:key", "--key-slot=3", image)
    erased = scratch / "erased"
    shutil.copyfile(image, erased)
    cryptsetup("luksKillSlot", erased, "0")
    cryptsetup("luksKillSlot", erased, "3")
    encrypted = encrypt_sectors("aes-xts-plain64", key, data)
    sealed, erased_sealed = fill(image, encrypted), fill(erased, encrypted)
    for file in (slots[0], slots[3]):
        await assert_opens(sealed, data, passphrase=file.read_bytes())
        await assert_wrong(erased_sealed, passphrase=file.read_bytes())
    for file in (slots[1], slots[2]):
        await assert_wrong(sealed, passphrase=file.read_bytes())
        await assert_wrong(erased_sealed, passphrase=file.read_bytes())
    for one in (sealed, erased_sealed):
        await assert_opens(one, data, key=key)
        await assert_wrong(one, key=other.read_bytes())
