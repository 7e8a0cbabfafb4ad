"""The node link on the network: mutual TLS between edges and node apps.

`LinkListener` runs beside a node app and takes many edges, `LinkDialer` runs in
an edge, one per node. Both post `LinkUp`, `LinkReceived` and `LinkDown` and keep
the link's liveness themselves: a ping each `ping_every_ms`, and a link whose far
end has said nothing for `silence_limit_ms` is closed. When this process's own
event loop was late the round is discarded, because then the silence is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ari_ha.adapters.mailbox import Count, Outbox, Post, no_count
from ari_ha.core.ports.link import LinkDown, LinkReceived, LinkUp
from ari_ha.wire.link import (
    EdgeHello,
    Frame,
    FrameReader,
    LinkProtocolError,
    NodeHello,
    Ping,
    Pong,
    encode,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """Certificates and limits of the node link."""

    ca_file: str = ""
    """Path. The authority whose certificates are accepted from the other side."""

    cert_file: str = ""
    """Path. Our certificate; its CN (or first DNS name) is the name we say in Hello."""

    key_file: str = ""
    """Path. The private key of ``cert_file``."""

    listen: str = "0.0.0.0:7700"
    """Host and port a node app listens on; an edge does not use it."""

    ping_every_ms: int = 250
    """Milliseconds. Four chances to be heard within the silence limit."""

    silence_limit_ms: int = 1000
    """Milliseconds. A LAN peer that said nothing for this long is not serving calls."""

    stall_limit_ms: int = 150
    """Milliseconds. A ping round later than this means our own loop stood still:
    the round says nothing about the far end."""

    connect_limit_ms: int = 1000
    """Milliseconds for TCP and for TLS each; on a LAN both take single ones."""

    retry_first_ms: int = 100
    """Milliseconds before the first reconnect; doubled until ``retry_last_ms``."""

    retry_last_ms: int = 1000
    """Milliseconds. A node that came back is in use within about a second."""

    write_buffer_max_bytes: int = 4 * 1024 * 1024
    """Bytes. A peer that does not read this much is not keeping up; four times the
    largest frame."""

    links_max: int = 64
    """Links. Edges a node app serves at once; more are refused."""

    def check(self) -> None:
        """Raises ValueError when the timing cannot work."""
        if self.silence_limit_ms < 3 * self.ping_every_ms:
            raise ValueError(
                f"silence_limit_ms={self.silence_limit_ms} leaves fewer than three pings of"
                f" ping_every_ms={self.ping_every_ms}: raise the limit or ping more often"
            )


def tls_context(settings: LinkSettings, *, server: bool) -> ssl.SSLContext:
    """TLS 1.3 with certificates on both sides. Names are compared by us, because a
    peer is known by its name and reached by an address."""
    purpose = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(purpose)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(settings.ca_file)
    context.load_cert_chain(settings.cert_file, settings.key_file)
    return context


def certificate_names(certificate: Mapping[str, Any] | None) -> list[str]:
    """CN, then the DNS names, of a certificate as `ssl.SSLSocket.getpeercert` gives it."""
    certificate = certificate or {}
    names = [
        value
        for part in certificate.get("subject", ())
        for key, value in part
        if key == "commonName" and value
    ]
    names += [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return list(dict.fromkeys(names))


_PATH_LOST = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN})


class _Owner(ABC):
    """What a link needs of the listener or dialer it belongs to."""

    def __init__(self, settings: LinkSettings, post: Post, count: Count | None, far_hello: type) -> None:
        settings.check()
        self.settings = settings
        self.outbox = Outbox(post)
        self.count = count or no_count
        self.far_hello = far_hello
        self.trouble = ""
        """Why the last connection failed or closed; for people."""
        self._links: dict[str, _Link] = {}
        self._ticker: asyncio.Task[None] | None = None

    @property
    def peers(self) -> list[str]:
        """Peers whose link is up."""
        return sorted(name for name, link in self._links.items() if link.is_up)

    def round_trip_s(self, peer: str) -> float | None:
        """Seconds the last ping of ``peer`` took, or None."""
        link = self._links.get(peer)
        return link.round_trip_s if link else None

    def send(self, peer: str, frame: Frame) -> bool:
        """Gives ``frame`` to the kernel or its buffer; False when there is no link."""
        link = self._links.get(peer)
        if link is None or not link.is_up:
            self.count("link_frames_lost", 1, ())
            return False
        return link.send(frame)

    @abstractmethod
    def admit(self, link: _Link, names: list[str]) -> str:
        """Why this authenticated link is refused; "" takes it (and names it)."""

    def gone(self, link: _Link, reason: str, clean: bool) -> None:
        """A link is over; posts `LinkDown` when it had been up."""
        self.trouble = reason
        self.count("link_closed", 1, (("clean", str(clean).lower()),))
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
        if link.is_up:
            link.is_up = False
            self.outbox.insist(LinkDown(peer=link.peer, reason=reason, clean=clean))

    def up(self, link: _Link) -> None:
        """The link is authenticated from both sides; a second one of the same peer
        replaces the first, which the far end must have given up."""
        old = self._links.get(link.peer)
        if old is not None and old is not link:
            old.drop("replaced by a newer connection", clean=True)
        self._links[link.peer] = link
        link.is_up = True
        self.count("link_opened", 1, ())
        self.outbox.insist(LinkUp(peer=link.peer))

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        every = self.settings.ping_every_ms / 1000
        stall = self.settings.stall_limit_ms / 1000
        due = loop.time() + every
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            now = loop.time()
            late = now - due
            if late > stall:
                self.count("link_rounds_discarded", 1, ())
            for link in list(self._links.values()):
                link.tick(now, discard=late > stall)
            due = max(due + every, now + every / 2)


class _Link(asyncio.Protocol):
    """One TLS connection."""

    def __init__(self, owner: _Owner) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._greeted = False
        self._closed = False
        self._heard_at = self._loop.time()
        self.peer = ""
        self.is_up = False
        self.round_trip_s: float | None = None
        self.over = self._loop.create_future()
        """Resolved when the connection is over."""

    # --- asyncio -----------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._heard_at = self._loop.time()
        _tune(transport.get_extra_info("socket"), self._owner.settings.silence_limit_ms)
        refusal = self._owner.admit(self, certificate_names(transport.get_extra_info("peercert")))
        if refusal:
            self._owner.count("link_refused", 1, ())
            self.drop(refusal)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        if self._closed:
            return
        try:
            skipped = self._reader.skipped
            frames = self._reader.feed(data)
        except LinkProtocolError as error:
            self.drop(f"protocol error: {error}")
            return
        if self._reader.skipped > skipped:
            self._owner.count("link_frames_skipped", self._reader.skipped - skipped, ())
        for frame in frames:
            if self._closed:
                return
            self._take(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        number = getattr(exc, "errno", None)
        self._over(str(exc) if exc else "closed by the far end", clean=number not in _PATH_LOST)

    # --- frames ------------------------------------------------------------------

    def _take(self, frame: Frame) -> None:
        if not self.is_up:
            # TLS 1.3 tells a client only with the first bytes that its certificate was taken.
            self._owner.up(self)
        if isinstance(frame, Ping):
            self.send(Pong(frame.t))
        elif isinstance(frame, Pong):
            self.round_trip_s = max(0.0, self._loop.time() - frame.t)
        elif self._greeted or self._hello_is_right(frame):
            self._greeted = True
            if not self._owner.outbox.offer(LinkReceived(peer=self.peer, frame=frame)):
                self.drop("the mailbox is full")  # the next link begins with snapshots

    def _hello_is_right(self, frame: Frame) -> bool:
        if not isinstance(frame, self._owner.far_hello):
            self.drop(f"{type(frame).__name__} before {self._owner.far_hello.__name__}")
            return False
        said = frame.node if isinstance(frame, NodeHello) else frame.edge  # type: ignore[attr-defined]
        if said != self.peer:
            self.drop(f"it says it is {said!r}, its certificate says {self.peer!r}")
            return False
        return True

    def send(self, frame: Frame) -> bool:
        """Writes a frame; a far end that does not read loses its link."""
        if self._transport is None or self._closed:
            return False
        self._transport.write(encode(frame))
        waiting = self._transport.get_write_buffer_size()
        if waiting > self._owner.settings.write_buffer_max_bytes:
            self.drop(f"does not read: {waiting} bytes are waiting")
            return False
        return True

    # --- life --------------------------------------------------------------------

    def tick(self, now: float, *, discard: bool) -> None:
        """One ping round."""
        if discard:
            self._heard_at = now
        silence_s = now - self._heard_at
        if silence_s * 1000 > self._owner.settings.silence_limit_ms:
            self.drop(f"silent for {silence_s * 1000:.0f} ms")
            return
        self.send(Ping(now))

    def drop(self, reason: str, *, clean: bool = False) -> None:
        """Ends the link from our side, at once."""
        self._over(reason, clean)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Says goodbye: what was sent still arrives."""
        self._over("we stop", clean=True)
        if self._transport is not None:
            self._transport.close()

    def _over(self, reason: str, clean: bool) -> None:
        if self._closed:
            return
        self._closed = True
        self._owner.gone(self, reason, clean)
        if not self.over.done():
            self.over.set_result(None)


def _tune(sock: Any, user_timeout_ms: int) -> None:
    """Small frames leave at once; unacknowledged ones end the connection (tcp(7))."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)


class LinkListener(_Owner):
    """The node app's side: accepts edges. ``allowed`` limits their names."""

    def __init__(
        self,
        settings: LinkSettings,
        host: str,
        port: int,
        post: Post,
        *,
        allowed: frozenset[str] | None = None,
        count: Count | None = None,
    ) -> None:
        super().__init__(settings, post, count, EdgeHello)
        self._host = host
        self._port = port
        self._allowed = allowed
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port listened on (of use when 0 was asked for)."""
        assert self._server is not None
        return self._server.sockets[0].getsockname()[1]

    async def start(self) -> None:
        """Listens. Raises OSError or ssl.SSLError: without a link there is no node."""
        limit_s = self.settings.connect_limit_ms / 1000
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Link(self),
            self._host,
            self._port,
            ssl=tls_context(self.settings, server=True),
            ssl_handshake_timeout=limit_s,
            ssl_shutdown_timeout=limit_s,
        )
        self._ticker = asyncio.create_task(self._tick(), name="link-listener-ticks")

    async def stop(self) -> None:
        """Closes every link and the listening socket; posts nothing."""
        self.outbox.close()
        if self._ticker is not None:
            self._ticker.cancel()
        if self._server is not None:
            self._server.close()
        for link in list(self._links.values()):
            link.close()

    def admit(self, link: _Link, names: list[str]) -> str:
        """Takes a certificate whose name is allowed."""
        if not names:
            return "a certificate without a name"
        if self._allowed is not None and names[0] not in self._allowed:
            return f"{names[0]!r} is not an edge of ours"
        if len(self._links) >= self.settings.links_max and names[0] not in self._links:
            return f"more than {self.settings.links_max} links"
        link.peer = names[0]
        self.up(link)
        link.send(Ping(asyncio.get_running_loop().time()))
        return ""


class LinkDialer(_Owner):
    """The edge's side: keeps one link to the node ``peer`` at ``host:port``.
    ``jitter`` gives numbers in 0..1 that spread the reconnects of many edges."""

    def __init__(
        self,
        settings: LinkSettings,
        peer: str,
        host: str,
        port: int,
        post: Post,
        *,
        jitter: Callable[[], float] = random.random,
        count: Count | None = None,
    ) -> None:
        super().__init__(settings, post, count, NodeHello)
        self.peer = peer
        self._host = host
        self._port = port
        self._jitter = jitter
        self._task: asyncio.Task[None] | None = None
        self._current: _Link | None = None

    async def start(self) -> None:
        """Begins to dial and never gives up. Raises when the certificates are unusable."""
        context = tls_context(self.settings, server=False)
        self._task = asyncio.create_task(self._keep(context), name=f"link-{self.peer}")
        self._ticker = asyncio.create_task(self._tick(), name=f"link-{self.peer}-ticks")

    async def stop(self) -> None:
        """Closes the link; posts nothing."""
        self.outbox.close()
        for task in (self._task, self._ticker):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._current is not None:
            self._current.close()

    def admit(self, link: _Link, names: list[str]) -> str:
        """Takes only the node this dialer is for."""
        if self.peer not in names:
            return f"the certificate is of {names or 'nobody'}, not of {self.peer!r}"
        link.peer = self.peer
        self._links[self.peer] = link
        link.send(Ping(asyncio.get_running_loop().time()))
        return ""

    async def _keep(self, context: ssl.SSLContext) -> None:
        pause_ms = self.settings.retry_first_ms
        while True:
            link = await self._connect(context)
            if link is not None:
                await link.over
                if link.round_trip_s is not None:
                    pause_ms = self.settings.retry_first_ms
            await asyncio.sleep(pause_ms * (0.5 + self._jitter() / 2) / 1000)
            pause_ms = min(pause_ms * 2, self.settings.retry_last_ms)

    async def _connect(self, context: ssl.SSLContext) -> _Link | None:
        limit_s = self.settings.connect_limit_ms / 1000
        loop = asyncio.get_running_loop()
        self._current = _Link(self)
        try:
            async with asyncio.timeout(2 * limit_s):
                await loop.create_connection(
                    lambda: self._current,
                    self._host,
                    self._port,
                    ssl=context,
                    server_hostname="",
                    ssl_handshake_timeout=limit_s,
                    ssl_shutdown_timeout=limit_s,
                )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self.trouble = f"{type(error).__name__}: {error}"
            self.count("link_connects_failed", 1, ())
            return None
        return self._current
