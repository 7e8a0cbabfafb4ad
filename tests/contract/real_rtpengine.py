"""A real rtpengine, with the flags of the edge's own."""

from __future__ import annotations

from containers import Container, free_port, media_ports

IMAGE = "ari-ha/edge"
INTERFACES = {"public": "127.0.0.1", "core": "127.0.0.2"}


class RealRtpengine(Container):
    """One relay; its media ports are on loopback."""

    def __init__(self) -> None:
        self.port = free_port()
        interfaces = " ".join(f"--interface={name}/{address}" for name, address in INTERFACES.items())
        super().__init__(
            IMAGE,
            f"exec rtpengine --foreground --log-stderr --log-level=4 --config-file=none --table=-1"
            f" --listen-ng=127.0.0.1:{self.port} {interfaces} {media_ports()}"
            " --timeout=86400 --silent-timeout=86400 --delete-delay=0 --num-threads=2",
        )
