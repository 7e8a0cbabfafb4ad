"""Settings of an edge guard (``guard.json``)."""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.machines.guard_config import GuardTimings
from ari_ha.runtime.settings import SettingsError
from sidecars.edge.settings import Etcd, Http

PORT_MAX = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One network of the pair: its shared address, and each host's own."""

    shared: str = ""
    """The address that moves; IPv4. Empty, on every network, where none can: then each
    edge serves by its own, and tells the far ends of the calls it takes over."""
    own: str
    """This host's own, first address on that network: it names the device."""
    peer: str
    """The other host's own address there: heartbeats go to it."""
    ports: tuple[str, ...] = ()
    """Without a shared address: the UDP and TCP ports of the edge process and of rtpengine
    there, each a number or `first-last`. They are silent while this host stands by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The valkey beside rtpengine."""

    address: str = "127.0.0.1:6379"
    """host:port. May be empty where no address moves: then a restarted rtpengine has lost its calls."""
    password_file: str = ""
    """Path; empty: no password (loopback only)."""
    database: int = 1
    """Number of the database rtpengine writes to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """rtpengine on this host."""

    ng: str = "127.0.0.1:2223"
    """host:port of its NG listener, to see that it answers."""
    cli: str = "127.0.0.1:2224"
    """host:port of its --listen-cli."""
    restart: tuple[str, ...] = ("systemctl", "kill", "--signal=KILL", "rtpengine-daemon")
    """Command that kills it; its supervisor starts it again. SIGKILL, so that it takes
    no call out of a store on its way."""
    store: Store = Store()
    """Its store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """One guard."""

    cluster: str
    """Name of the cluster: the part of the key space this guard lives in."""
    edge: str
    """The edge on this host."""
    peer: str
    """The edge on the other host of the pair."""
    vip: str
    """The pair's name."""
    etcd: Etcd
    """etcd."""
    networks: dict[str, Network]
    """By name: `core` and `public`. All addresses move together; heartbeats use every one."""
    key_file: str
    """Path. The key of heartbeats and of words with the edge process; the same on both hosts."""
    beat_port: int = 7710
    """UDP port of heartbeats, on every own address."""
    listen: str = "127.0.0.1:7712"
    """host:port for the words of the edge process."""
    edge_words: str = "127.0.0.1:7711"
    """host:port of the edge process's `guard.listen`."""
    relay: Relay = Relay()
    """rtpengine."""
    http: Http = Http(listen="127.0.0.1:8088")
    """HTTP interface."""
    timings: GuardTimings = GuardTimings()
    """Limits and periods."""

    @property
    def address_moves(self) -> bool:
        """Whether the pair has shared addresses."""
        return any(network.shared for network in self.networks.values())

    def check(self) -> None:
        """Refuses what cannot work: one identity twice, or a frozen owner that is heard."""
        timings = self.timings
        if self.edge == self.peer:
            raise SettingsError(f"edge and peer are both {self.edge!r}: each host needs its own name")
        for name, network in self.networks.items():
            self._check_network(name, network)
        if not self.networks:
            raise SettingsError("networks is empty: there is no address to guard")
        if len({bool(network.shared) for network in self.networks.values()}) > 1:
            raise SettingsError("networks: either every network has a shared address or none has")
        if self.address_moves and not self.relay.store.address:
            raise SettingsError("relay.store.address is empty: the peer's rtpengine could not know the calls")
        if timings.fence_ttl_s >= timings.detect_s:
            raise SettingsError(
                f"timings.fence_ttl_s is {timings.fence_ttl_s} s: a frozen owner would still be heard when "
                f"its peer takes over after {timings.detect_s:.2f} s. Lower it, or raise beats_missed_max."
            )
        if timings.fence_ttl_s < 3 * timings.beat_every_s:
            raise SettingsError("timings.fence_ttl_s: less than three heartbeats would cut living calls")

    @staticmethod
    def _check_network(name: str, network: Network) -> None:
        addresses = {network.shared, network.own, network.peer} - {""}
        if len(addresses) < (3 if network.shared else 2):
            raise SettingsError(f"networks.{name}: shared, own and peer must be different addresses")
        if network.shared and network.ports:
            raise SettingsError(f"networks.{name}.ports: a shared address is fenced as a whole; leave it out")
        if network.shared:
            return
        if not network.ports:
            raise SettingsError(
                f"networks.{name}: without a shared address the ports of edge and rtpengine are needed"
            )
        for port in network.ports:
            first, _, last = port.partition("-")
            numbers = [int(n) if n.isascii() and n.isdigit() else 0 for n in (first, last or first)]
            if not 0 < numbers[0] <= numbers[1] <= PORT_MAX:
                raise SettingsError(f"networks.{name}.ports: {port!r} is neither a port nor first-last")
