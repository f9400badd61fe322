"""A file system made of dictionaries: what EXT2 under Linux is to answer."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.support.model.contents import CHUNK, windows
from tests.support.model.mounted import CannotTell, Mounted
from tests.support.model.nodes import Modelled, Node, OpenNode, _attribute_name, _is_modelled, _listed_type, _may_have
from tests.support.model.results import (
    ACCESS_ACL,
    DEFAULT_ACL,
    MAX_LINKS_FOLLOWED,
    NAME_MAX,
    NODE,
    OK,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    UNKNOWN,
    Failed,
    Status,
    Tree,
    Unknown,
    failure,
    spell,
)


class Model:
    """A file system made of dictionaries: names, types, modes, owners, links, sizes, contents, and extended attributes
    but for ACLs and capabilities, all as root with no umask sees them.

    What depends on the layout on disk (does an attribute fit?), on ACLs, or on settings of the kernel
    (fs.protected_*: EACCES, even for root), is taken from ``observed``, what the kernel's ext2 answered.
    """

    def __init__(self, block_size: int, root: Node) -> None:
        self.block_size = block_size
        self.root = root
        self.slots: dict[int, int] = {}
        self.observed: object = OK
        self._handles: dict[int, OpenNode] = {}
        self._next_handle = 0

    @classmethod
    def load(cls, side: Mounted) -> Model:
        """The model of a directory's contents."""
        shared: dict[int, Node] = {}

        def read(path: Path) -> Node:
            found = path.lstat()
            node = shared.get(found.st_ino)
            if node is not None:
                return node
            node = Node(NODE(found.st_mode), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_nlink)
            shared[found.st_ino] = node
            for name in os.listxattr(path, follow_symlinks=False):
                if name == DEFAULT_ACL:
                    node.default_acl = True
                elif _is_modelled(name):
                    node.xattrs[name] = os.getxattr(path, name, follow_symlinks=False)
            if node.is_directory:
                node.entries = {child.name: read(child) for child in path.iterdir()}
            elif node.is_file:
                data = path.read_bytes()
                for offset in range(0, len(data), CHUNK):
                    if piece := data[offset : offset + CHUNK].rstrip(b"\0"):
                        node.content.write(offset, piece)
                node.content.size = len(data)
            elif node.kind == stat.S_IFLNK:
                node.target = os.readlink(path)
            else:
                node.device = found.st_rdev
            return node

        return cls(side.block_size, read(Path(side.root)))

    # Paths

    def _walk(self, path: str, follow: bool) -> tuple[Node, str, Node | None]:
        """The directory in which a path ends, the last name, and its node."""
        pending = [part for part in spell(path).split("/") if part not in ("", ".")]
        node, followed = self.root, 0
        if not pending:
            return node, "", node
        while True:
            name = pending.pop(0)
            if not node.is_directory:
                raise failure(errno.ENOTDIR)
            if len(os.fsencode(name)) > NAME_MAX:
                raise failure(errno.ENAMETOOLONG)
            child = node.entries.get(name)
            if child is not None and child.kind == stat.S_IFLNK and (pending or follow):
                followed += 1
                if followed > MAX_LINKS_FOLLOWED:
                    raise failure(errno.ELOOP)
                pending = child.target.split("/") + pending
                continue
            if not pending:
                return node, name, child
            if child is None:
                raise failure(errno.ENOENT)
            node = child

    def _find(self, path: str, follow: bool = True) -> Node:
        node = self._walk(path, follow)[2]
        if node is None:
            raise failure(errno.ENOENT)
        return node

    def _new(self, path: str, kind: int, mode: int) -> Node:
        parent, name, existing = self._walk(path, follow=False)
        if existing is not None:
            raise failure(errno.EEXIST)
        return self._add(parent, name, kind, mode)

    def _add(self, parent: Node, name: str, kind: int, mode: int) -> Node:
        """A new node in a directory, with the owner and mode that it inherits there."""
        if parent.default_acl and self.observed == Failed("ENOSPC"):
            # The inherited ACLs do not fit into the place for attributes.
            self._adopt()
        node = Node(kind, mode)
        if isinstance(parent.permissions, Unknown):
            node.gid = UNKNOWN
        elif parent.permissions & stat.S_ISGID:
            node.gid = parent.gid
        if kind == stat.S_IFDIR:
            node.links = 2
            parent.links += 1
            if isinstance(parent.permissions, Unknown):
                node.permissions = UNKNOWN
            else:
                node.permissions = mode | parent.permissions & stat.S_ISGID
        node.flags = parent.flags
        if parent.default_acl and kind != stat.S_IFLNK:
            node.permissions = UNKNOWN
            node.default_acl = kind == stat.S_IFDIR
        parent.entries[name] = node
        return node

    def _adopt(self) -> None:
        """Fail as the kernel did."""
        if isinstance(self.observed, Failed):
            raise failure(getattr(errno, self.observed.error))

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Every path and its node, directories first, in order of their names."""
        pending = [("", self.root)]
        while pending:
            path, node = pending.pop()
            yield path, node
            pending += [(os.path.join(path, name), node.entries[name]) for name in sorted(node.entries, reverse=True)]

    # Open files

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        parent, name, node = self._walk(path, follow=not (exclusive or flags & os.O_NOFOLLOW))
        if node is None:
            if not flags & os.O_CREAT:
                raise failure(errno.ENOENT)
            node = self._add(parent, name, stat.S_IFREG, mode)
        elif exclusive:
            raise failure(errno.EEXIST)
        elif node.kind == stat.S_IFLNK:
            raise failure(errno.ENOTDIR if flags & os.O_DIRECTORY else errno.ELOOP)
        elif node.is_directory:
            if flags & (os.O_CREAT | os.O_TRUNC | os.O_ACCMODE):
                raise failure(errno.EISDIR)
        elif flags & os.O_DIRECTORY:
            raise failure(errno.ENOTDIR)
        elif not node.is_file:
            raise CannotTell
        if flags & os.O_TRUNC:
            node.content.truncate(0)
        self._next_handle += 1
        self._handles[self._next_handle] = OpenNode(node, flags)
        return self._next_handle

    def close(self, handle: int) -> None:
        del self._handles[handle]

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        file = self._handles[handle]
        if file.access == os.O_WRONLY:
            raise failure(errno.EBADF)
        if file.node.is_directory:
            raise failure(errno.EISDIR)
        return file.node.content.read(offset, length)

    def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        file = self._handles[handle]
        if file.access == os.O_RDONLY:
            raise failure(errno.EBADF)
        content = file.node.content
        content.write(content.size if file.flags & os.O_APPEND else offset, data)
        return len(data)

    def ftruncate(self, handle: int, size: int) -> None:
        file = self._handles[handle]
        if file.access == os.O_RDONLY:
            raise failure(errno.EINVAL)
        file.node.content.truncate(size)

    def fstat(self, handle: int) -> Status:
        return self._status(self._handles[handle].node)

    def fchmod(self, handle: int, mode: int) -> None:
        self._handles[handle].node.permissions = mode

    def fsync(self, handle: int) -> None:
        pass

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        node = self._handles[handle].node
        if node.is_directory:
            raise CannotTell
        if offset >= node.content.size:
            raise failure(errno.ENXIO)
        # Which blocks are holes the model does not know.
        raise CannotTell

    def punch(self, handle: int, offset: int, length: int) -> None:
        node = self._handles[handle].node
        if not length:
            raise failure(errno.EINVAL)
        node.content.punch(offset, length)

    def copy(self, source: int, target: int, offset: int, into: int, length: int) -> int:
        nodes = [self._handles[handle].node for handle in (source, target)]
        if any(node.is_directory for node in nodes):
            raise failure(errno.EISDIR)
        length = max(min(length, nodes[0].content.size - offset), 0)
        if nodes[0] is nodes[1] and offset < into + length and into < offset + length:
            raise failure(errno.EINVAL)
        nodes[1].content.write(into, nodes[0].content.read(offset, length))
        return length

    def get_flags(self, handle: int) -> int:
        return self._handles[handle].node.flags

    def set_flags(self, handle: int, flags: int) -> None:
        self._handles[handle].node.flags = flags

    def open_nameless(self, directory: str, mode: int) -> int:
        parent = self._find(directory)
        if not parent.is_directory:
            raise failure(errno.ENOTDIR)
        node = self._add(parent, "", stat.S_IFREG, mode)
        del parent.entries[""]
        node.links, node.is_nameless = 0, True
        self._next_handle += 1
        self._handles[self._next_handle] = OpenNode(node, os.O_RDWR)
        return self._next_handle

    def link_handle(self, handle: int, path: str) -> None:
        node = self._handles[handle].node
        parent, name, existing = self._walk(path, follow=False)
        if existing is not None:
            raise failure(errno.EEXIST)
        if not node.links and not node.is_nameless:
            raise failure(errno.ENOENT)
        if node.is_directory:
            raise failure(errno.EPERM)
        node.links += 1
        node.is_nameless = False
        parent.entries[name] = node

    def has_unlinked_open_files(self) -> bool:
        return any(file.node.links == 0 for file in self._handles.values())

    # Names

    def lstat(self, path: str) -> Status:
        return self._status(self._find(path, follow=False))

    @staticmethod
    def _status(node: Node) -> Status:
        mode = UNKNOWN if isinstance(node.permissions, Unknown) else node.kind | node.permissions
        size = len(os.fsencode(node.target)) if node.kind == stat.S_IFLNK else node.content.size
        return mode, node.uid, node.gid, node.links, size, UNKNOWN, node.device

    def listdir(self, path: str) -> list[str]:
        node = self._find(path)
        if not node.is_directory:
            raise failure(errno.ENOTDIR)
        return sorted(node.entries)

    def readlink(self, path: str) -> str:
        node = self._find(path, follow=False)
        if node.kind != stat.S_IFLNK:
            raise failure(errno.EINVAL)
        return node.target

    def mkdir(self, path: str, mode: int) -> None:
        self._new(path, stat.S_IFDIR, mode & 0o1777)

    def mknod(self, path: str, mode: int, device: int) -> None:
        node = self._new(path, NODE(mode), stat.S_IMODE(mode))
        if node.kind in (stat.S_IFCHR, stat.S_IFBLK):
            node.device = device

    def symlink(self, target: str, path: str) -> None:
        length = len(os.fsencode(target))
        if length >= 4096:
            raise failure(errno.ENAMETOOLONG)
        parent, name, existing = self._walk(path, follow=False)
        if existing is not None:
            raise failure(errno.EEXIST)
        if length >= self.block_size:
            raise failure(errno.ENAMETOOLONG)
        self._add(parent, name, stat.S_IFLNK, 0o777).target = target

    def link(self, source: str, path: str) -> None:
        node = self._find(source, follow=False)
        parent, name, existing = self._walk(path, follow=False)
        if existing is not None:
            raise failure(errno.EEXIST)
        if node.is_directory:
            raise failure(errno.EPERM)
        node.links += 1
        parent.entries[name] = node

    def unlink(self, path: str) -> None:
        parent, name, node = self._walk(path, follow=False)
        if node is None:
            raise failure(errno.ENOENT)
        if node.is_directory:
            raise failure(errno.EISDIR)
        self._remove(parent, name)

    def rmdir(self, path: str) -> None:
        parent, name, node = self._walk(path, follow=False)
        if node is None:
            raise failure(errno.ENOENT)
        if not node.is_directory:
            raise failure(errno.ENOTDIR)
        if node.entries:
            raise failure(errno.ENOTEMPTY)
        self._remove(parent, name)

    @staticmethod
    def _remove(parent: Node, name: str) -> None:
        node = parent.entries.pop(name)
        if node.is_directory:
            node.links = 0
            parent.links -= 1
        else:
            node.links -= 1

    def rename(self, source: str, target: str, flags: int) -> None:
        if flags & RENAME_EXCHANGE and flags != RENAME_EXCHANGE:
            raise failure(errno.EINVAL)
        # Both directories are resolved before either last name is looked up.
        for path in (source, target):
            if "/" in path and not self._find(os.path.dirname(path)).is_directory:
                raise failure(errno.ENOTDIR)
        old_parent, old_name, node = self._walk(source, follow=False)
        if node is None:
            raise failure(errno.ENOENT)
        new_parent, new_name, existing = self._walk(target, follow=False)
        if existing is None and flags & RENAME_EXCHANGE:
            raise failure(errno.ENOENT)
        if existing is not None and flags & RENAME_NOREPLACE:
            raise failure(errno.EEXIST)
        if new_parent is node or new_parent in node.children():
            raise failure(errno.EINVAL)
        if existing is not None and (old_parent is existing or old_parent in existing.children()):
            raise failure(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY)
        if existing is node:
            return
        if existing is not None and flags & RENAME_EXCHANGE:
            old_parent.entries[old_name], new_parent.entries[new_name] = existing, node
            old_parent.links += existing.is_directory - node.is_directory
            new_parent.links += node.is_directory - existing.is_directory
            return
        if existing is not None:
            if node.is_directory and not existing.is_directory:
                raise failure(errno.ENOTDIR)
            if existing.is_directory and not node.is_directory:
                raise failure(errno.EISDIR)
            if existing.entries:
                raise failure(errno.ENOTEMPTY)
            self._remove(new_parent, new_name)
        del old_parent.entries[old_name]
        new_parent.entries[new_name] = node
        if flags & RENAME_WHITEOUT:
            self._add(old_parent, old_name, stat.S_IFCHR, 0)
        old_parent.links -= node.is_directory
        new_parent.links += node.is_directory

    # Attributes

    def truncate(self, path: str, size: int) -> None:
        node = self._find(path)
        if node.is_directory:
            raise failure(errno.EISDIR)
        if not node.is_file:
            raise failure(errno.EINVAL)
        node.content.truncate(size)

    def chmod(self, path: str, mode: int) -> None:
        self._find(path).permissions = mode

    def chown(self, path: str, uid: int, gid: int, follow: bool) -> None:
        node = self._find(path, follow)
        if uid != -1:
            node.uid = uid
        if gid != -1:
            node.gid = gid
        if not node.is_directory and not isinstance(node.permissions, Unknown):
            node.permissions &= ~stat.S_ISUID
            if node.permissions & stat.S_IXGRP:
                node.permissions &= ~stat.S_ISGID

    def utime(self, path: str, nanoseconds: int, follow: bool) -> None:
        self._find(path, follow)

    def setxattr(self, path: str, name: str, value: bytes, flags: int, follow: bool) -> None:
        name = _attribute_name(name)
        node = self._find(path, follow)
        if not _is_modelled(name):
            self._adopt()
            if name == ACCESS_ACL:
                node.permissions = UNKNOWN
            elif name == DEFAULT_ACL:
                node.default_acl = True
            return
        if not _may_have(node, name):
            raise failure(errno.EPERM)
        if flags == os.XATTR_CREATE and name in node.xattrs:
            raise failure(errno.EEXIST)
        if flags == os.XATTR_REPLACE and name not in node.xattrs:
            raise failure(errno.ENODATA)
        if self.observed == Failed("ENOSPC"):
            raise failure(errno.ENOSPC)
        node.xattrs[name] = value

    def getxattr(self, path: str, name: str, follow: bool) -> object:
        name = _attribute_name(name)
        node = self._find(path, follow)
        if not _is_modelled(name):
            raise CannotTell
        if not _may_have(node, name) or name not in node.xattrs:
            raise failure(errno.ENODATA)
        return node.xattrs[name]

    def removexattr(self, path: str, name: str, follow: bool) -> None:
        name = _attribute_name(name)
        node = self._find(path, follow)
        if not _is_modelled(name):
            self._adopt()
            return
        if not _may_have(node, name):
            raise failure(errno.EPERM)
        if name not in node.xattrs:
            raise failure(errno.ENODATA)
        del node.xattrs[name]

    def listxattr(self, path: str, follow: bool) -> object:
        self._find(path, follow)
        return UNKNOWN

    def tree(self) -> Tree:
        """Everything in ``Mounted.tree`` that the model knows."""
        found: Tree = {}
        first: dict[int, str] = {}
        for path, node in self.walk():
            entry = found[path] = {"status": self._status(node), "same as": first.setdefault(id(node), path)}
            if node.is_directory:
                entry["names"] = [(name, _listed_type(node.entries[name])) for name in sorted(node.entries)]
            elif node.is_file:
                digest = hashlib.sha256()
                for offset, length in windows(node.content.size, self.block_size):
                    digest.update(node.content.read(offset, length))
                entry["sha256"] = digest.hexdigest()
            elif node.kind == stat.S_IFLNK:
                entry["target"] = node.target
            entry["xattrs"] = Modelled(node.xattrs)
        return found
