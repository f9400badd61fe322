"""Processes that change and look at the files of a mount (``operators.c``), and the judge of their logs.

*Linearizable*: each call seems to happen at one moment between its start and its end. ``model`` follows what the
writers did: what each object was, and when. ``checker`` finds a state for what each reader saw.

Each object has one writer, so its states have one order, known from its log, and the check is exact. Several writers an
object would find no more: the kernel itself lets only one at a time change an inode (``i_rwsem``), and sends no request
of the next before the last was answered. What several writers do share is here: directories, their blocks, inode
tables, bitmaps.

What the kernel promises, and the judge takes for granted, is what its own ext2 keeps to (``test_consistency.py`` judges
that too): a cell of a page may be seen half old and half new while it is written, since reading takes no lock, but not
before or after; a file grows page by page; a name is looked up first, and its inode's attributes come after that, each
by itself. A read past the kernel's cache (O_DIRECT) and one from it are not ordered among each other, since a write is
in the cache first.
"""
