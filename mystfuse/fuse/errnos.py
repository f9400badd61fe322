"""Errors of a request become the errno of its reply, in this one place."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import trio
from pyfuse3 import FUSEError

from mystfuse.errors import IntegrityError, MystfuseError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class _Handlers(Protocol):
    last_request: float


H = TypeVar("H", bound=_Handlers)


def answers_errnos(
    method: Callable[Concatenate[H, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[H, P], Coroutine[Any, Any, T]]:
    """Make a handler raise FUSEError alone: any other exception would take down the whole mount.

    It also records the time of the request in ``last_request``.
    """

    async def handle(self: H, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.last_request = trio.current_time()
        try:
            return await method(self, *args, **kwargs)
        except FUSEError:
            raise
        except MystfuseError as error:
            if not isinstance(error, IntegrityError):
                # The device that found the damage has logged it.
                log.warning("%s: %s", method.__name__, error)
            raise FUSEError(error.errno) from None
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        except MemoryError:
            log.error("%s: no memory left", method.__name__)
            raise FUSEError(errno.ENOMEM) from None
        except Exception:
            log.exception("%s: internal error", method.__name__)
            raise FUSEError(errno.EIO) from None

    functools.update_wrapper(handle, method)
    return handle
