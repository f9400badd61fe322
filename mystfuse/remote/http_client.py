"""A client for HTTP/1.1 and HTTP/2: connections, TLS, proxies. Redirects, credentials and repetition are its users'."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from socket import IPPROTO_TCP, SO_KEEPALIVE, SOL_SOCKET, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_USER_TIMEOUT

import httpcore2
import httpx2
import trio

from mystfuse import __version__
from mystfuse.errors import one_line
from mystfuse.remote.estimates import RoundTrips
from mystfuse.remote.http_failures import failure_of_error, failure_of_status, wants_http2
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.proxies import proxy_for
from mystfuse.remote.tls import no_tls_context, stamp_of, tls_context

CONNECTIONS = 8
"""Requests to one host under way at once, as intended; hedged ones come on top."""
_MOST_CONNECTIONS = CONNECTIONS + 4
SAFETY_NET = 60.0
"""Seconds for any single step of reading or writing; ``Transfers`` is stricter."""
_IDLE = 50.0
"""Seconds that an idle connection is kept: servers keep them for 60 or 75."""
_CONNECT = 10.0
"""Seconds for a connection, TLS included."""
_CONNECT_DIRECTLY = 2.0
"""The same past the proxy, where packets may vanish."""
_UNREACHABLE_DIRECTLY = 60.0
"""Seconds for which that is not tried again."""
_MOST_HOSTS = 256
"""Hosts of which something is remembered: a server may send us to others for ever."""
_LATE = 0.2
_RENEWED = 10.0
"""Seconds for which new connections are not suspected."""
_SUSPICIOUS = 3.0
"""Seconds without an answer after which the other idle connections may be dead too."""
_READ = 256 << 10
"""Bytes that are read from a connection at once: with httpcore2's own 64 KiB, a body costs twice the processor time."""
_LONGEST_ERROR = 4096
"""Bytes of the body of an error."""
_SOCKET_OPTIONS = (
    (SOL_SOCKET, SO_KEEPALIVE, 1),
    (IPPROTO_TCP, TCP_KEEPIDLE, 10),
    (IPPROTO_TCP, TCP_KEEPINTVL, 5),
    (IPPROTO_TCP, TCP_KEEPCNT, 3),
    (IPPROTO_TCP, TCP_USER_TIMEOUT, 20_000),
)
"""So that a connection whose other end has vanished ends within half a minute, even an idle one."""


class Answer:
    """An answer whose head has come: its body follows, once."""

    def __init__(self, response: httpx2.Response, name: str) -> None:
        self._response = response
        self._name = name
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        """Names in any case."""
        self.is_finished = False
        """Whether the body has been read to its end."""
        self.last_heard = trio.current_time()
        """When the last bytes came."""

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, encoded as it is, in pieces of up to 128 KiB."""
        with _any_error_named():
            async with aclosing(self._response.aiter_raw()) as pieces:
                async for piece in pieces:
                    self.last_heard = trio.current_time()
                    yield piece
        self.is_finished = True

    async def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            FetchError: UNUSABLE: it has more than ``limit`` bytes.
        """
        body = bytearray()
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > limit:
                    raise FetchError(Failure.UNUSABLE, f"{self._name}: an answer of more than {limit} bytes")
        return bytes(body)

    async def failure(self) -> FetchError:
        """What this answer, which is no success, means."""
        has_password = "authorization" in self._response.request.headers
        return failure_of_status(
            self._name, self.status, self.headers, await self.beginning(), has_password=has_password
        )

    async def beginning(self) -> bytes:
        """What comes of the body of an error in two seconds, 4096 bytes at most."""
        body = bytearray()
        with trio.move_on_after(2), suppress(httpx2.HTTPError):
            async with aclosing(self.pieces()) as pieces:
                async for piece in pieces:
                    body += piece
                    if len(body) >= _LONGEST_ERROR:
                        break
        return bytes(body[:_LONGEST_ERROR])


@contextmanager
def _any_error_named() -> Iterator[None]:
    """Whatever else libraries raise about what a server sends (h2: its own errors) becomes an error of httpx2."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, MemoryError):
        raise
    except Exception as error:
        raise httpx2.RemoteProtocolError(f"{type(error).__name__}: {error}") from error


_Key = tuple[bool, bool, str | None]
"""Whether it is https, whether HTTP/2 alone, and which proxy."""


@dataclass(eq=False)
class _Pool:
    """Connections of one kind."""

    transport: httpx2.AsyncHTTPTransport
    since: float
    waiting: dict[httpx2.Request, float] = field(default_factory=dict)
    """Requests without an answer, and when they were sent; the oldest comes first."""
    usual: RoundTrips = field(default_factory=RoundTrips)
    in_use: int = 0
    is_retired: bool = False
    """It gets no more requests, and is closed after the last one."""

    def is_suspicious(self, now: float) -> bool:
        """Whether a request has waited much longer than usual, so that its connection may be dead, and the idle ones
        too: when a laptop has slept, or a router has forgotten them."""
        oldest = next(iter(self.waiting.values()), now)
        late = max(_LATE, 3 * self.usual.mean) if self.usual.samples else _SUSPICIOUS
        return now - oldest > late and now - self.since > _RENEWED


class _NotConnectedError(Exception):
    def __init__(self, failure: FetchError, wants_http2: bool) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.wants_http2 = wants_http2


class HttpClient:
    """Sends requests. May be used by several tasks at once; each request may be cancelled at any time.

    By HTTP/1.1, which costs a third of the processor time of HTTP/2 (h2 is written in Python); by HTTP/2 to servers
    that speak nothing else.

    Args:
        ca_certificates: see ``tls_context``.
        client_certificate: likewise.
    """

    def __init__(self, ca_certificates: str | None = None, client_certificate: str | None = None) -> None:
        httpcore2.AsyncHTTP11Connection.READ_NUM_BYTES = _READ
        self._files = ca_certificates, client_certificate
        self._stamp = stamp_of(*self._files)
        self._pools: dict[_Key, _Pool] = {}
        self._proxies: dict[tuple[str, str, int | None], str | None] = {}
        self._http2_alone: set[bytes] = set()
        """Hosts that speak nothing else."""
        self._unreachable_directly = -math.inf

    @asynccontextmanager
    async def send(
        self,
        name: str,
        method: str,
        url: httpx2.URL,
        headers: Mapping[str, str],
        *,
        content: bytes | AsyncIterator[bytes] | None = None,
        directly: bool = False,
        patience: float = SAFETY_NET,
    ) -> AsyncIterator[Answer]:
        """Send a request and wait for the head of its answer; the body is read inside the block.

        Args:
            name: of what is asked for, for messages.
            headers: besides ``Host``, ``User-Agent`` and ``Accept-Encoding: identity``.
            directly: without the proxy, if the host can be reached so.
            patience: seconds for any single step of reading or writing.

        Raises:
            FetchError: UNREACHABLE, DENIED (by a proxy), UNTRUSTED; of the body as well.
        """
        proxy = self._proxy(url)
        routes = [(proxy, _CONNECT)]
        if proxy is not None and directly and trio.current_time() >= self._unreachable_directly:
            routes.insert(0, (None, _CONNECT_DIRECTLY))
        while True:
            route, seconds = routes[0]
            was_http2 = url.netloc in self._http2_alone
            request = _request(method, url, headers, content, seconds, patience)
            try:
                async with self._send(name, request, route) as answer:
                    yield answer
                    return
            except _NotConnectedError as error:
                if error.wants_http2 and not was_http2:
                    if len(self._http2_alone) >= _MOST_HOSTS:
                        self._http2_alone.clear()
                    self._http2_alone.add(url.netloc)
                elif len(routes) > 1:
                    del routes[0]
                    self._unreachable_directly = trio.current_time() + _UNREACHABLE_DIRECTLY
                else:
                    raise error.failure from error

    async def renew(self) -> bool:
        """Read files with certificates again, for connections to come. Returns whether they have changed."""
        stamp = stamp_of(*self._files)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        for key, pool in list(self._pools.items()):
            if key[0]:
                self._retire(key, pool)
                await _close_if_unused(pool)
        return True

    async def aclose(self) -> None:
        """Close all connections, those in use too."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            await pool.transport.aclose()

    @asynccontextmanager
    async def _send(self, name: str, request: httpx2.Request, proxy: str | None) -> AsyncIterator[Answer]:
        key = request.url.scheme == "https", request.url.netloc in self._http2_alone, proxy
        started, answer = trio.current_time(), None
        pool = self._pools.get(key)
        if pool is not None and pool.is_suspicious(started):
            self._retire(key, pool)
            pool = None
        pool = pool or self._make_pool(key)
        pool.in_use += 1
        pool.waiting[request] = started
        try:
            with _any_error_named():
                response = await pool.transport.handle_async_request(request)
            response.request = request
            answer = Answer(response, name)
            pool.usual.add(answer.last_heard - pool.waiting.pop(request))
            try:
                yield answer
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await response.aclose()
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            asked = request.url if proxy is None else httpx2.URL(proxy)
            failure = failure_of_error(name, error, asked, is_proxy=proxy is not None)
            if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)):
                raise _NotConnectedError(failure, wants_http2(error)) from error
            raise failure from error
        finally:
            pool.in_use -= 1
            pool.waiting.pop(request, None)
            last_heard = started if answer is None else answer.last_heard
            is_unfinished = answer is None or not answer.is_finished
            # What is left of an answer of HTTP/2 would take up its connection's window, as httpcore2 does not reset the
            # stream; and where a server has fallen silent, the idle connections may be dead as well.
            if is_unfinished and (key[1] or trio.current_time() - last_heard > _SUSPICIOUS):
                self._retire(key, pool)
            await _close_if_unused(pool)

    def _retire(self, key: _Key, pool: _Pool) -> None:
        pool.is_retired = True
        if self._pools.get(key) is pool:
            del self._pools[key]

    def _proxy(self, url: httpx2.URL) -> str | None:
        host = url.scheme, url.host, url.port
        if host not in self._proxies:
            if len(self._proxies) >= _MOST_HOSTS:
                self._proxies.clear()
            self._proxies[host] = proxy_for(*host)
        return self._proxies[host]

    def _make_pool(self, key: _Key) -> _Pool:
        is_https, is_http2, proxy_url = key
        proxy = None
        try:
            if proxy_url is not None:
                proxy = httpx2.Proxy(proxy_url)
                if proxy.url.scheme == "https":
                    proxy.ssl_context = tls_context(*self._files, self._stamp)
            transport = httpx2.AsyncHTTPTransport(
                verify=tls_context(*self._files, self._stamp) if is_https else no_tls_context(),
                http2=is_http2,
                limits=httpx2.Limits(
                    max_connections=_MOST_CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=_IDLE
                ),
                proxy=proxy,
                socket_options=_SOCKET_OPTIONS,
            )
        except (ImportError, ValueError, httpx2.InvalidURL) as error:
            shown = proxy.url.scheme + "://" + proxy.url.host if proxy else "the environment's"
            raise FetchError(Failure.UNUSABLE, f"proxy {shown}: {one_line(str(error))}") from error
        self._pools[key] = pool = _Pool(transport, trio.current_time())
        return pool


async def _close_if_unused(pool: _Pool) -> None:
    if pool.is_retired and not pool.in_use:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await pool.transport.aclose()


def _request(
    method: str,
    url: httpx2.URL,
    headers: Mapping[str, str],
    content: bytes | AsyncIterator[bytes] | None,
    connect: float,
    patience: float,
) -> httpx2.Request:
    all_headers = {"User-Agent": f"mystfuse/{__version__}", "Accept-Encoding": "identity", **headers}
    timeout = httpx2.Timeout(patience, connect=connect, pool=None).as_dict()
    return httpx2.Request(method, url, headers=all_headers, content=content, extensions={"timeout": timeout})
