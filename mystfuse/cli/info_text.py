"""What ``mystfuse info`` prints: one screen for people, and one JSON object for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mystfuse.errors import one_line
from mystfuse.formats.verity import VOUCHER
from mystfuse.image.report import CheckedBy, Report
from mystfuse.system.units import describe_bytes

_WIDTH = 13
"""Columns of the names."""
_CHECKED = {
    CheckedBy.TRUSTED_ROOT_HASH: "verified: it matches the trusted root hash",
    CheckedBy.OWN_ROOT_HASH: "it matches the image's own root hash, which nobody vouches for",
    CheckedBy.NOTHING: "unverified: these are claims",
}


def lines_of(report: Report) -> Iterator[str]:
    """The description for people, line by line, not yet escaped."""
    yield f"{report.name}: {report.kind.title}"
    rows = [*_image_rows(report)] if report.is_image else [*_other_rows(report)]
    rows += _file_system_rows(report)
    rows += _luks_rows(report)
    rows += _tree_rows(report)
    if report.file_system is not None or report.luks is not None:
        rows.append(("checked", _CHECKED[report.checked_by]))
    if report.error is not None and report.is_image and report.kind.title not in str(report.error):
        rows.append(("but", str(report.error)))
    for name, value in rows:
        yield f"{name:{_WIDTH}} {value}"
    if report.regions:
        yield f"{'layout':{_WIDTH}} {'from byte':>15} {'bytes':>15}"
        for region in report.regions:
            where = f" (in {region.file})" if region.file is not None else ""
            yield f"{'':{_WIDTH}} {region.offset:15} {region.size:15}  {region.what}{where}"
    if report.kind.parts:
        yield f"{'partitions':{_WIDTH}} {'from byte':>15} {'bytes':>15}"
        for part in report.kind.parts:
            contents = f": {part.contents}" if part.contents else ""
            yield f"{part.number:{_WIDTH}} {part.offset:15} {part.size:15}  {part.type}{contents}"
    if report.kind.advice and not (report.is_image and report.kind.name == "image" and report.error is None):
        yield f"{'to do':{_WIDTH}} {report.kind.advice}"
        if report.kind.name != "image":
            for command in report.kind.commands_for(report.name):
                yield f"{'':{_WIDTH}}   {command}"


def _image_rows(report: Report) -> Iterator[tuple[str, str]]:
    if report.trust is not None:
        warned = "" if report.trust.is_vouched_for else ", with a warning"
        yield "trust", f"a mount would accept it{warned}: {report.trust.explanation}"
    elif report.refusal is not None:
        yield "trust", f"a mount would refuse it: {report.refusal}"
    if report.fssig is not None:
        yield "root hash", report.fssig.root_hash.hex()
        yield "signer", _signer(report)
    elif report.trust is not None and report.trust.root_hash is not None:
        yield "root hash", report.trust.root_hash.hex()
    yield "to open it", _needs(report)


def _signer(report: Report) -> str:
    assert report.fssig is not None
    if not report.fssig.is_signed:
        return "none: it is unsigned"
    signer = report.fssig.signer.hex()
    if report.signer_key is None:
        return f"{signer}, it says: no key that is trusted here (--pubkey, /etc/mystfuse/trust.d)"
    known = f"the RSA key of {report.signer_key.key.key_size} bits in {report.signer_key.name}"
    judgement = "its signature is right" if report.signature_is_right else "but the SIGNATURE IS WRONG"
    return f"{signer}: {known}; {judgement}"


def _needs(report: Report) -> str:
    if not report.needs_key:
        return "takes no key: it is not encrypted"
    if report.is_decrypted:
        return "the key that was given opens it"
    assert report.luks is not None
    size = f" of {report.luks.key_bits // 8} bytes" if report.luks.key_bits else ""
    master_key = f"the master key{size} (--key-file)"
    if report.takes_passphrase:
        return f"takes a passphrase (--passphrase-file), or {master_key}"
    return f"takes {master_key}: no key slot takes a passphrase"


def _other_rows(report: Report) -> Iterator[tuple[str, str]]:
    if report.size is not None:
        yield "size", _exactly(report.size)
    if report.file_system is not None or report.luks is not None:
        return
    for name, value in report.kind.facts.items():
        if name == "bytes":
            yield "holds", _exactly(int(str(value)))
        else:
            yield name.replace("_", " "), ", ".join(value) if isinstance(value, tuple) else str(value)


def _exactly(size: int) -> str:
    return f"{describe_bytes(size)} ({size} bytes)" if size >= 1024 else describe_bytes(size)


def _file_system_rows(report: Report) -> Iterator[tuple[str, str]]:
    found = report.file_system
    if found is None:
        if report.luks is not None and report.is_image:
            yield "file system", "encrypted: needs a key to be described"
        return
    yield (
        "file system",
        f"{found.type}, {describe_bytes(found.size)} in blocks of {found.block_size} bytes: "
        f"{describe_bytes(found.used)} used, {describe_bytes(found.free)} free; "
        f"{found.inodes - found.free_inodes} of {found.inodes} inodes used",
    )
    yield "", f"{f'label {found.label!r}' if found.label else 'no label'}, UUID {found.uuid}"
    yield "", f"features: {' '.join(found.features) or 'none'}"
    if found.unsupported:
        yield "", f"of which mystfuse lacks: {' '.join(found.unsupported)}"
    elif found.only_for_reading:
        yield "", f"mounted read-only because of: {' '.join(found.only_for_reading)}"
    if found.has_errors:
        yield "", "marked as damaged (e2fsck -fn says more)"


def _luks_rows(report: Report) -> Iterator[tuple[str, str]]:
    luks = report.luks
    if luks is None:
        return
    key = f", volume key of {luks.key_bits} bits" if luks.key_bits else ""
    sectors = f", sectors of {luks.sector_size} bytes" if luks.sector_size else ""
    yield f"LUKS{luks.version}", f"{luks.cipher or 'unknown cipher'}{key}{sectors}, UUID {luks.uuid or 'none'}"
    if luks.label:
        yield "", f"label {luks.label!r}"
    for slot in luks.slots:
        cost = f" (about {slot.seconds:.1f} s)" if slot.seconds else ""
        yield "", f"key slot {slot.number}: {slot.kdf}{cost}"
    if not luks.slots:
        yield "", "no key slots"
    if luks.tokens:
        yield "", f"tokens: {', '.join(luks.tokens)}"
    if luks.fault is not None and not report.is_image:
        yield "", f"mystfuse does not open it: {luks.fault}"


def _tree_rows(report: Report) -> Iterator[tuple[str, str]]:
    if report.tree is None:
        return
    tree = report.tree.superblock
    salt = f"salt of {len(tree.salt)} bytes{' that covers its superblock' if tree.salt.startswith(VOUCHER) else ''}"
    yield (
        "hash tree",
        f"{tree.algorithm}, type {tree.hash_type}, over {tree.data_blocks} blocks of {tree.data_block_size} bytes; "
        f"{len(report.tree.geometry.levels)} levels in blocks of {tree.hash_block_size}; {salt}",
    )


def document_of(report: Report) -> dict[str, Any]:
    """The description for programs: docs/schemas/info.json."""
    trust, kind, error = report.trust, report.kind, report.error
    is_vouched_for = trust is not None and trust.is_vouched_for and (error is None or report.is_image)
    return {
        "file": report.name,
        "size": report.size,
        "kind": kind.name,
        "title": kind.title,
        "is_image": report.is_image,
        "trusted": is_vouched_for,
        "accepted": trust is not None and error is None,
        "trust": trust.reason.value if trust is not None else None,
        "trust_explanation": trust.explanation if trust is not None else report.refusal,
        "root_hash": _root_hash(report),
        "signer": _signer_object(report),
        "key": _key_object(report),
        "checked_by": report.checked_by.value,
        "file_system": _file_system_object(report),
        "luks": _luks_object(report),
        "hash_tree": _tree_object(report),
        "layout": [
            {"what": region.what, "offset": region.offset, "size": region.size, "file": region.file}
            for region in report.regions
        ],
        "partitions": [
            {
                "number": part.number,
                "type": part.type,
                "offset": part.offset,
                "size": part.size,
                "contents": part.contents or None,
            }
            for part in kind.parts
        ],
        "facts": {name: list(value) if isinstance(value, tuple) else value for name, value in kind.facts.items()},
        "advice": kind.advice or None,
        "commands": [one_line(command) for command in kind.commands_for(report.name)],
        "error": None if error is None else {"status": int(error.exit_status), "message": one_line(str(error))},
    }


def _root_hash(report: Report) -> str | None:
    if report.fssig is not None:
        return report.fssig.root_hash.hex()
    given = report.trust.root_hash if report.trust is not None else None
    return given.hex() if given is not None else None


def _signer_object(report: Report) -> dict[str, Any] | None:
    if report.fssig is None or not report.fssig.is_signed:
        return None
    key = report.signer_key
    return {
        "signer": report.fssig.signer.hex(),
        "key_file": key.name if key is not None else None,
        "key_bits": key.key.key_size if key is not None else None,
        "signature_is_right": report.signature_is_right,
    }


def _key_object(report: Report) -> dict[str, Any] | None:
    if report.luks is None:
        return None
    return {
        "takes_passphrase": report.takes_passphrase,
        "master_key_bytes": report.luks.key_bits // 8 if report.luks.key_bits else None,
        "opens": report.is_decrypted,
    }


def _file_system_object(report: Report) -> dict[str, Any] | None:
    found = report.file_system
    if found is None:
        return None
    return {
        "type": found.type,
        "label": found.label or None,
        "uuid": found.uuid,
        "size": found.size,
        "used": found.used,
        "free": found.free,
        "block_size": found.block_size,
        "blocks": found.blocks,
        "free_blocks": found.free_blocks,
        "inodes": found.inodes,
        "free_inodes": found.free_inodes,
        "features": list(found.features),
        "unsupported_features": list(found.unsupported),
        "read_only_features": list(found.only_for_reading),
        "created": found.created,
        "has_errors": found.has_errors,
    }


def _luks_object(report: Report) -> dict[str, Any] | None:
    luks = report.luks
    if luks is None:
        return None
    return {
        "version": luks.version,
        "uuid": luks.uuid or None,
        "label": luks.label or None,
        "cipher": luks.cipher,
        "key_bits": luks.key_bits,
        "sector_size": luks.sector_size,
        "payload_offset": luks.payload_offset,
        "payload_size": luks.payload_size,
        "key_slots": [
            {
                "number": slot.number,
                "kdf": slot.kdf,
                "seconds": slot.seconds,
                "memory": slot.memory,
                "cipher": slot.cipher,
                "key_bits": slot.key_bits,
                "priority": slot.priority,
            }
            for slot in luks.slots
        ],
        "tokens": list(luks.tokens),
        "unsupported": luks.fault,
    }


def _tree_object(report: Report) -> dict[str, Any] | None:
    if report.tree is None:
        return None
    tree = report.tree.superblock
    return {
        "hash_offset": report.hash_offset,
        "algorithm": tree.algorithm,
        "hash_type": tree.hash_type,
        "data_block_size": tree.data_block_size,
        "hash_block_size": tree.hash_block_size,
        "data_blocks": tree.data_blocks,
        "levels": len(report.tree.geometry.levels),
        "salt": tree.salt.hex(),
        "salt_covers_superblock": tree.salt.startswith(VOUCHER),
        "uuid": tree.uuid.hex(),
    }
