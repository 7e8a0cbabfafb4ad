"""A real Asterisk with the repository's own node configuration; its addresses are on loopback."""

from __future__ import annotations

from pathlib import Path

from containers import Container, docker, free_port

IMAGE = "ari-ha/asterisk"
CONFIGURATION = Path(__file__).parents[2] / "asterisk-conf"
PASSWORD = "contract"
HOST = "127.0.0.1"


class RealAsterisk(Container):
    """One Asterisk; ``pid_file`` names its process as this machine sees it, ``control_socket`` is where
    it takes commands."""

    def __init__(self, directory: Path) -> None:
        self.pid_file = directory / "asterisk.pid"
        self.sip_port, self.http_port = free_port(), free_port()
        self.edge_ports = {f"node-{kind}": free_port() for kind in ("trunk", "agent", "resume")}
        configuration = directory / "conf"
        self._render(configuration)
        (run := directory / "run").mkdir()
        self.control_socket = run / "asterisk.ctl"
        script = "rm -f /run/asterisk/* && mkdir -p /var/spool/asterisk/recording && exec asterisk -f"
        volumes = (f"{configuration}:/etc/asterisk:ro", f"{run}:/run/asterisk")
        super().__init__(IMAGE, script, *(word for volume in volumes for word in ("--volume", volume)))
        self._note_pid()

    @property
    def url(self) -> str:
        """Of its ARI."""
        return f"http://{HOST}:{self.http_port}"

    def _render(self, target: Path) -> None:
        """The node configuration with the names and ports of this test filled in."""
        names = {
            "@NODE@": "contract", "@SIP_ADDRESS@:5060": f"{HOST}:{self.sip_port}", "@SIP_ADDRESS@": HOST,
            "@ARI_PASSWORD@": PASSWORD, "@EDGE@": HOST, "@EDGES_BENCH@": f"{HOST}:9/32",
            "bindport = 8088": f"bindport = {self.http_port}",
        }  # fmt: skip
        for listener, port in self.edge_ports.items():
            names[f"@EDGES_{listener.removeprefix('node-').upper()}@"] = f"{HOST}:{port}/32"
        target.mkdir()
        for file in CONFIGURATION.glob("*.conf"):
            text = file.read_text()
            for name, value in names.items():
                text = text.replace(name, value)
            (target / file.name).write_text(text)

    def _note_pid(self) -> None:
        self.pid = docker("inspect", "--format", "{{.State.Pid}}", self.name)
        self.pid_file.write_text(self.pid)

    def start_again(self) -> None:
        super().start_again()
        self._note_pid()
