"""Hash trees of every shape."""

from __future__ import annotations

import pytest

from tests.support.verity_images import SHAPES, Image, build


@pytest.fixture(params=SHAPES)
def image(request: pytest.FixtureRequest) -> Image:
    """An image of each shape, which the test may damage."""
    return build(**SHAPES[request.param])
