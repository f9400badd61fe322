"""Both kernels: the C one and the fallback."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

from mystfuse.crypto import sector_ciphers as sectors


@pytest.fixture(scope="module", params=["native", "pure"])
def kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    """Parameter: the ciphers of the C kernel, then of the fallback, instead of those chosen at import."""
    module = importlib.import_module(f"mystfuse.kernels.{request.param}.sectors")
    with pytest.MonkeyPatch.context() as patch:
        for name in "XtsCipher", "CbcCipher", "EcbCipher":
            patch.setattr(sectors, name, getattr(module, name))
        yield
