"""How a node app reaches its Asterisk, and what it needs there."""

from __future__ import annotations

from dataclasses import dataclass, field

REQUIRED_MODULES = (
    "app_stasis.so", "bridge_holding.so", "bridge_simple.so", "bridge_softmix.so", "chan_pjsip.so",
    "res_ari.so", "res_ari_applications.so", "res_ari_asterisk.so", "res_ari_bridges.so",
    "res_ari_channels.so", "res_ari_events.so", "res_ari_playbacks.so", "res_musiconhold.so",
    "res_rtp_asterisk.so", "res_stasis.so", "res_stasis_answer.so", "res_stasis_playback.so",
    "res_stasis_snoop.so",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AriSettings:
    """Where Asterisk's ARI is and when it counts as silent."""

    url: str = "http://127.0.0.1:8088"
    """URL of Asterisk's HTTP server (with its prefix, if it has one); ``/ari`` is added.
    Loopback: the app runs beside its Asterisk."""

    username: str = "ari-ha"
    """Name. The user in ari.conf."""

    password: str = field(default="", metadata={"secret": True})
    """Text. The user's password; better given by ``password_file``."""

    password_file: str = ""
    """Path. Read at every connect, so that a changed password needs no restart."""

    app: str = "ari-ha"
    """Name. The Stasis application; exactly one process may use it."""

    pid_file: str = "/run/asterisk/asterisk.pid"
    """Path. Names Asterisk's process; its end is then known in the same millisecond.
    Empty: the end of the process is never certain."""

    process_name: str = "asterisk"
    """Name. What the process must be called, because a pid file can be stale."""

    required_modules: tuple[str, ...] = REQUIRED_MODULES
    """Names. Without these a call would fail half-way; a node that misses one is not ready."""

    missing_every_ms: int = 2_000
    """Milliseconds between two looks for a module that is missing."""

    modules_every_ms: int = 30_000
    """Milliseconds between two looks whether all are still there: nobody unloads one by chance."""

    events_unwanted: tuple[str, ...] = ("ChannelDialplan", "ChannelVarset")
    """Event types Asterisk need not send: no decision uses them and they are many."""

    ping_every_ms: int = 200
    """Milliseconds. Four chances to answer within the silence limit."""

    silence_limit_ms: int = 800
    """Milliseconds. Longer than any pause of an Asterisk that still serves calls."""

    stall_limit_ms: int = 150
    """Milliseconds. A ping round later than this means our own loop stood still:
    it says nothing about Asterisk."""

    gone_recheck_ms: int = 200
    """Milliseconds a closed websocket waits for the end of the process to be certain."""

    connect_limit_ms: int = 2000
    """Milliseconds for each request while connecting; a full snapshot of a busy node
    is some hundred kilobytes."""

    retry_first_ms: int = 100
    """Milliseconds before the first reconnect; doubled until ``retry_last_ms``."""

    retry_last_ms: int = 1000
    """Milliseconds. An Asterisk that came back is in use within about a second."""

    requests_max: int = 8
    """Requests, and so connections, at once. Asterisk listens with a backlog of 10: more
    connections opened together overflow it, and the kernel tries again only after a
    second (measured: 51 overflows and calls taken over 1 s late with 32)."""

    keepalive_s: float = 10.0
    """Seconds a connection rests; below Asterisk's session_keep_alive (15 s by default),
    so that no request meets a connection being closed."""

    buffer_max_events: int = 10_000
    """Events kept while a snapshot is read; with more of them it is read again."""

    message_max_bytes: int = 4 * 1024 * 1024
    """Bytes of one websocket message."""

    def check(self) -> None:
        """Raises ValueError when the timing cannot work."""
        if self.silence_limit_ms < 3 * self.ping_every_ms:
            raise ValueError(
                f"silence_limit_ms={self.silence_limit_ms} leaves fewer than three pings of"
                f" ping_every_ms={self.ping_every_ms}: raise the limit or ping more often"
            )
