"""Errors of a request become the errno of its reply, in this one place."""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from pyfuse3 import FUSEError

from mystfuse.errors import IntegrityError, MystfuseError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class _Counted(Protocol):
    last_request: float


class _Handlers(Protocol):
    @property
    def requests(self) -> _Counted: ...


H = TypeVar("H", bound=_Handlers)


def answers_errnos(
    method: Callable[Concatenate[H, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[H, P], Coroutine[Any, Any, T]]:
    """Make a handler raise FUSEError alone: any other exception would take down the whole mount.

    It also records the time of the request in ``requests.last_request``.
    """

    async def handle(self: H, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.requests.last_request = time.monotonic()
        try:
            return await method(self, *args, **kwargs)
        except Exception as error:
            raise FUSEError(errno_of(error, method.__name__)) from None

    functools.update_wrapper(handle, method)
    return handle


def errno_of(error: Exception, request: str) -> int:
    """The errno that answers a request which failed with an error; logs what the user should know.

    Args:
        request: its name, for the log.
    """
    if isinstance(error, FUSEError):
        return int(error.errno)
    if isinstance(error, MystfuseError):
        if not isinstance(error, IntegrityError):
            # The device that found the damage has logged it.
            log.warning("%s: %s", request, error)
        return error.errno
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if isinstance(error, MemoryError):
        log.error("%s: no memory left", request)
        return errno.ENOMEM
    log.error("%s: internal error", request, exc_info=error)
    return errno.EIO
