"""etcd over grpc.aio: carries the calls and the one stream of the client machine.

`EtcdStore` is what a process uses. It is made by `ari_ha.runtime.etcd.open_store`,
which gives it its machine (`ari_ha.machines.etcd_client.EtcdClient`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc import ChannelConnectivity, aio

from ari_ha.core.machine import (
    DeadlineReached,
    Effect,
    Event,
    Instant,
    Machine,
    Note,
    Outcome,
    Refused,
)
from ari_ha.core.ports.store import LeaseState, StoreRead, StoreTxn
from ari_ha.wire import etcd as wire
from ari_ha.wire.etcd import Failure, Trouble
from ari_ha.wire.etcd_proto import messages as pb

#: How long one TCP and TLS connect may take, and the longest pause between two.
CONNECT_MAX_MS = 1_000
RECONNECT_FIRST_MS = 100
STREAM_WRITES_MAX = 10_000
DEADLINE_FLOOR_S = 0.001
CLOSE_MAX_S = 2.0

# Keep-alive pings of gRPC stay off: etcd answers too many of them with GOAWAY, and
# the machine proves liveness by calls of its own.
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.min_reconnect_backoff_ms", CONNECT_MAX_MS),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    ("grpc.max_reconnect_backoff_ms", CONNECT_MAX_MS),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)
_SETTLED = (ChannelConnectivity.READY, ChannelConnectivity.TRANSIENT_FAILURE, ChannelConnectivity.SHUTDOWN)


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """Where etcd is and who we are there."""

    #: one host:port per member (a leading http:// or https:// is accepted)
    endpoints: tuple[str, ...] = ("127.0.0.1:2379",)
    #: the authority that signed the members' certificates; empty: no TLS
    ca_file: str = ""
    #: our own certificate and key: etcd with --client-cert-auth asks for them
    cert_file: str = ""
    key_file: str = ""
    #: the name in the members' certificates, when it is not their host name
    server_name: str = ""
    #: etcd user; empty: authentication is off
    user: str = ""
    password: str = ""

    def targets(self) -> tuple[str, ...]:
        """The endpoints as host:port."""
        return tuple(text.split("://", 1)[-1].rstrip("/") for text in self.endpoints)

    def login(self) -> tuple[str, str] | None:
        """User and password, where there is a user."""
        return (self.user, self.password) if self.user else None


class _Member:
    """The channel to one member and its methods."""

    def __init__(self, target: str, settings: EtcdSettings) -> None:
        options = list(_OPTIONS)
        if settings.server_name:
            options.append(("grpc.ssl_target_name_override", settings.server_name))
        if settings.ca_file:
            self.channel = aio.secure_channel(target, _credentials(settings), options)
        else:
            self.channel = aio.insecure_channel(target, options)
        self._methods: dict[str, Any] = {}

    def method(self, name: str) -> Any:
        """The callable of a method. LeaseKeepAlive, asked once, answers once: to the
        wire that is the same as a unary call."""
        found = self._methods.get(name)
        if found is None:
            path, request, response, _ = pb.METHODS[name]
            make = self.channel.stream_stream if name == "Watch" else self.channel.unary_unary
            found = self._methods[name] = make(
                path,
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
        return found

    async def settle(self) -> ChannelConnectivity:
        """Waits until the connection is up or has failed."""
        state = self.channel.get_state(try_to_connect=True)
        while state not in _SETTLED:
            await self.channel.wait_for_state_change(state)
            state = self.channel.get_state(try_to_connect=True)
        return state


def _credentials(settings: EtcdSettings) -> grpc.ChannelCredentials:
    def read(name: str) -> bytes | None:
        return Path(name).read_bytes() if name else None

    return grpc.ssl_channel_credentials(
        read(settings.ca_file), read(settings.key_file), read(settings.cert_file)
    )


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    """``hasleader``: a member without a leader says so at once instead of waiting."""
    return (("hasleader", "true"), ("token", token)) if token else (("hasleader", "true"),)


class EtcdStore:
    """etcd for one process: mirrors, one lease, transactions and reads.

    ``post`` gets StoreSnapshot, StoreChanged, StoreReach and LeaseState; when it
    answers False the event is told again later (a change: as a new snapshot).
    All methods belong to the running event loop.
    """

    def __init__(
        self,
        settings: EtcdSettings,
        post: Callable[[Event], bool | None],
        client: Machine,
        *,
        clock: Callable[[], Instant] = time.monotonic,
        note: Callable[[Note], None] | None = None,
    ) -> None:
        self._settings = settings
        self._post = post
        self._client = client
        self._clock = clock
        self._note = note
        self._log = logging.getLogger("ari_ha.etcd")
        self._inbox: deque[Event] = deque()
        self._busy = False
        self._closed = False
        self._members: dict[str, _Member] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: dict[int, tuple[asyncio.Task[None], asyncio.Queue[Any]]] = {}
        self._waiting: dict[int, asyncio.Future[Outcome]] = {}
        self._last_ticket = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for: Instant | None = None
        self.lease_state = LeaseState(held=False)
        self.faults = 0

    # -- what a process uses

    def mirror(self, prefix: str) -> None:
        """Keep ``post`` informed of every key under ``prefix``."""
        self._feed(wire.MirrorWanted(prefix=prefix))

    def unmirror(self, prefix: str) -> None:
        """Nothing under ``prefix`` is told any more."""
        self._feed(wire.MirrorUnwanted(prefix=prefix))

    def lease(self, ttl_s: int) -> None:
        """Keep one lease for the process; `Put.leased` uses it."""
        self._feed(wire.LeaseWanted(ttl_s=ttl_s))

    def start(self) -> None:
        """Begin; keeps trying for as long as etcd is away."""
        self._feed(wire.Start())

    async def perform(self, effect: Effect) -> Outcome:
        """The outcome of a StoreTxn or StoreRead, within its ``limit_s``."""
        if not isinstance(effect, StoreTxn | StoreRead):
            raise TypeError(f"not for etcd: {type(effect).__name__}")
        if self._closed:
            return Refused("closed")
        self._last_ticket += 1
        ticket = self._last_ticket
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        try:
            self._feed(wire.Submitted(ticket=ticket, effect=effect))
            return await future
        finally:
            self._waiting.pop(ticket, None)

    async def close(self, *, revoke: bool = True) -> None:
        """Ends everything. ``revoke``: the leased keys go now, not after the ttl."""
        if self._closed:
            return
        self._feed(wire.Stop(revoke=revoke))
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        streams = [task for task, _ in self._streams.values()]
        for task in streams:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_MAX_S)
        rest = [*self._tasks, *streams]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for member in self._members.values():
            await member.channel.close(None)

    # -- the machine

    def _feed(self, event: Event) -> None:
        if self._closed:
            return
        self._inbox.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:
                self._handle(self._inbox.popleft())
        finally:
            self._busy = False
        self._arm()

    def _handle(self, event: Event) -> None:
        try:
            effects = self._client.handle(event, self._clock())
        except Exception:
            # As in the shell: a fault of ours is told, and the process goes on.
            self.faults += 1
            self._log.exception('{"kind": "fault", "where": "etcd", "event": "%s"}', type(event).__name__)
            return
        for effect in effects:
            self._do(effect)

    def _arm(self) -> None:
        """Keeps a timer that is not later than the client's deadline. One that is earlier
        stays (most deadlines only move away) and is set anew when it has come."""
        wanted = self._client.deadline()
        if wanted is None or self._closed:
            return
        if self._timer is not None:
            if self._armed_for is not None and self._armed_for <= wanted:
                return
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        wait_s = max(wanted - self._clock(), DEADLINE_FLOOR_S)
        self._armed_for = wanted
        self._timer = loop.call_at(loop.time() + wait_s, self._deadline_came)

    def _deadline_came(self) -> None:
        self._timer = None
        self._feed(DeadlineReached())

    def _do(self, effect: Effect) -> None:
        match effect:
            case wire.EtcdCall():
                self._spawn(self._run_call(effect))
            case wire.Settle(ticket=ticket, outcome=outcome):
                future = self._waiting.get(ticket)
                if future is not None and not future.done():
                    future.set_result(outcome)
            case wire.Deliver(event=event):
                self._deliver(event)
            case wire.StreamSend(stream=stream, request=request):
                if stream in self._streams:
                    self._streams[stream][1].put_nowait(request)
            case wire.StreamOpen(stream=stream):
                queue: asyncio.Queue[Any] = asyncio.Queue(STREAM_WRITES_MAX)
                task = asyncio.get_running_loop().create_task(self._run_stream(effect, queue))
                self._streams[stream] = (task, queue)
            case wire.StreamClose(stream=stream):
                if stream in self._streams:
                    self._streams.pop(stream)[0].cancel()
            case wire.MemberReset(endpoint=endpoint):
                member = self._members.pop(endpoint, None)
                if member is not None:
                    self._spawn(member.channel.close(None))
            case Note():
                if self._note is not None:
                    self._note(effect)

    def _deliver(self, event: Event) -> None:
        if isinstance(event, LeaseState):
            self.lease_state = event
        if self._post(event) is False:
            self._inbox.append(wire.DeliveryRefused(event=event))

    # -- gRPC

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _member(self, endpoint: str) -> _Member:
        member = self._members.get(endpoint)
        if member is None:
            member = self._members[endpoint] = _Member(endpoint, self._settings)
        return member

    async def _run_call(self, call: wire.EtcdCall) -> None:
        self._feed(wire.EtcdAnswer(call=call.call, result=await self._ask(call)))

    async def _ask(self, call: wire.EtcdCall) -> Any:
        """The answer, or the `Failure`, within the call's limit. What was not sent
        because no connection came up is known to be not done."""
        member = self._member(call.endpoint)
        limit_s = call.limit_s
        if member.channel.get_state() is not ChannelConnectivity.READY:
            began = self._clock()
            try:
                async with asyncio.timeout(limit_s):
                    await member.settle()
            except TimeoutError:
                return Failure(Trouble.NOT_SENT, "connecting took too long")
            except aio.UsageError:
                return Failure(Trouble.NOT_SENT, "channel closed")
            limit_s = max(limit_s - (self._clock() - began), DEADLINE_FLOOR_S)
        try:
            return await member.method(call.method)(
                call.request, timeout=limit_s, metadata=_metadata(call.token)
            )
        except aio.AioRpcError as error:
            return wire.failure(error.code().name, error.details() or "")
        except (asyncio.CancelledError, aio.UsageError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return Failure(Trouble.LOST, "channel closed")

    async def _run_stream(self, opened: wire.StreamOpen, queue: asyncio.Queue[Any]) -> None:
        why = Failure(Trouble.LOST, "stream ended")
        writer: asyncio.Task[None] | None = None
        call: Any = None
        try:
            member = self._member(opened.endpoint)
            await member.settle()
            call = member.method("Watch")(metadata=_metadata(opened.token))
            writer = asyncio.get_running_loop().create_task(_write(call, queue))
            while (response := await call.read()) is not aio.EOF:
                self._feed(wire.StreamSaid(stream=opened.stream, response=response))
            why = wire.failure((await call.code()).name, await call.details() or "")
        except aio.AioRpcError as error:
            why = wire.failure(error.code().name, error.details() or "")
        except (asyncio.CancelledError, aio.UsageError, asyncio.InvalidStateError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        finally:
            if writer is not None:
                writer.cancel()
            if call is not None:
                call.cancel()
        if self._streams.pop(opened.stream, None) is not None:
            self._feed(wire.StreamEnded(stream=opened.stream, why=why))


async def _write(call: Any, queue: asyncio.Queue[Any]) -> None:
    """Writes what is queued; a failed write shows in the reading half too."""
    try:
        while True:
            await call.write(await queue.get())
    except (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError):
        return
