"""SIP in the simulated world: sockets on the network, and processes that own a real
`ari_ha.sip.Endpoint` behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ari_ha.simulation.process import DEAD, FROZEN, Process
from ari_ha.simulation.world import Network, Timer, World
from ari_ha.sip.endpoint import Endpoint
from ari_ha.sip.events import SipEvent
from ari_ha.sip.flow import Flow, Listener

SOCKET_BUFFER_DATAGRAMS = 200
"""What a kernel keeps for a process that does not read."""

Receive = Callable[[bytes, str, int], None]
Refused = Callable[[str, int], None]


class Wire:
    """Every UDP socket of the world. Addresses belong to hosts."""

    def __init__(self, world: World, network: Network) -> None:
        self.world = world
        self.network = network
        self.host_of: dict[str, str] = {}
        self.hosts_down: set[str] = set()
        self.gone: set[str] = set()
        """Addresses nobody has"""
        self._sockets: dict[tuple[str, int], tuple[Process, Receive, Refused]] = {}
        self._buffered: dict[tuple[str, int], int] = {}
        self.taps: list[Callable[[str, int, str, int, bytes], None]] = []
        self.on_read: list[Callable[[tuple[str, int], bytes], None]] = []
        """Called with where a datagram came from that a process reads"""

    def listen(self, process: Process, address: str, port: int, receive: Receive, refused: Refused) -> None:
        """``process`` reads the socket."""
        self.host_of[address] = process.host
        self._sockets[(address, port)] = (process, receive, refused)
        self._buffered[(address, port)] = 0

    def send(self, source: tuple[str, int], to: tuple[str, int], data: bytes, host: str = "") -> None:
        """A datagram on its way; from ``host`` where that is not the one that has the address."""
        for tap in self.taps:
            tap(*source, *to, data)
        here, there = host or self.host_of.get(source[0], source[0]), self.host_of.get(to[0], to[0])
        self.network.datagram(here, there, lambda: self._arrive(source, to, data, here, there))

    def _arrive(
        self, source: tuple[str, int], to: tuple[str, int], data: bytes, here: str, there: str
    ) -> None:
        if there in self.hosts_down or to[0] in self.gone:
            return
        socket = self._sockets.get(to)
        if socket is None or socket[0].state == DEAD:
            self.network.datagram(there, here, lambda: self._refuse(source, to))
            return
        process, receive, _ = socket
        if process.state == FROZEN:
            if self._buffered[to] >= SOCKET_BUFFER_DATAGRAMS:
                return
            self._buffered[to] += 1

        def read() -> None:
            self._buffered[to] = 0
            for tell in self.on_read:
                tell(source, data)
            receive(data, *source)

        process.in_life(read)()

    def _refuse(self, source: tuple[str, int], to: tuple[str, int]) -> None:
        socket = self._sockets.get(source)
        if socket is not None:
            process, _, refused = socket
            process.in_life(lambda: refused(*to))()


class SipProcess(Process):
    """A process whose SIP is a real `Endpoint` on UDP sockets of one address."""

    def __init__(
        self, world: World, wire: Wire, name: str, host: str, address: str, ports: Mapping[str, int]
    ) -> None:
        super().__init__(world, name, host)
        self.wire = wire
        self.address = address
        self.ports = dict(ports)
        self._ids = 0
        self._sip_timer: Timer | None = None
        self.sip = self._endpoint()

    def _endpoint(self) -> Endpoint:
        listeners = {name: Listener(name, "udp", self.address, port) for name, port in self.ports.items()}
        return Endpoint(listeners, self._new_id, user_agent=self.name)

    def _new_id(self) -> str:
        self._ids += 1
        return f"{self.name}-{self.life}-{self._ids}"

    def begin(self) -> None:
        """A new life with a new endpoint on the same sockets."""
        super().begin()
        self.sip = self._endpoint()
        self._sip_timer = None
        for name, port in self.ports.items():
            self.wire.listen(self, self.address, port, self._reader(name), self._refusal(name))

    def _reader(self, listener: str) -> Receive:
        def receive(data: bytes, host: str, port: int) -> None:
            self.sip.receive(data, Flow(listener, "udp", host, port), self.clock.monotonic())
            self.pump()

        return receive

    def _refusal(self, listener: str) -> Refused:
        def refused(host: str, port: int) -> None:
            self.sip.transport_error(
                Flow(listener, "udp", host, port), "connection refused", self.clock.monotonic()
            )
            self.pump()

        return refused

    @property
    def mono(self) -> float:
        """This process's monotonic clock, as its endpoint wants it."""
        return self.clock.monotonic()

    def pump(self) -> None:
        """Carries out what the endpoint wants: datagrams, events, its timer."""
        for _ in range(1000):
            events = self.sip.events()
            for event in events:
                self.heard(event)
            if not events:
                break
        for data, flow in self.sip.output():
            self.wire.send((self.address, self.ports[flow.listener]), (flow.host, flow.port), data)
        if self._sip_timer is not None:
            self._sip_timer.cancel()
            self._sip_timer = None
        due = self.sip.deadline()
        if due is not None:
            self._sip_timer = self.world.at(self.clock.true(due), self.in_life(self._timer_came))

    def _timer_came(self) -> None:
        self._sip_timer = None
        self.sip.handle_timer(self.clock.monotonic() + 1e-6)
        self.pump()

    def heard(self, event: SipEvent) -> None:
        """The endpoint says something; for the subclass."""
        raise NotImplementedError
