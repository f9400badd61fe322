"""Comparing trees in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path

import mystfuse as api
from mystfuse.tree.diff.change import Change
from mystfuse.tree.diff.compare import ALL, Rules, compare
from mystfuse.tree.diff.directory_view import DirectoryView
from mystfuse.tree.diff.image_view import ImageView
from mystfuse.tree.diff.view import View


async def changes_between(old: View, new: View, rules: Rules = ALL) -> list[Change]:
    """All changes, in their order."""
    async with aclosing(compare(old, new, rules)) as changes:
        return [change async for change in changes]


async def directory_changes(old: Path, new: Path, rules: Rules = ALL) -> list[Change]:
    """The changes from one directory to another."""
    with closing(DirectoryView(old)) as old_view, closing(DirectoryView(new)) as new_view:
        return await changes_between(old_view, new_view, rules)


@asynccontextmanager
async def image_view(image: Path, has_digests: bool = True) -> AsyncIterator[ImageView]:
    """The view of an image.

    Args:
        has_digests: whether its hash tree may stand for its contents.
    """
    async with api.open_image(image, trust="self") as tree:
        view = ImageView.of_tree(tree, str(image))
        if not has_digests:
            view.verity = None
        yield view
