"""The two Asterisks of the overlay ``peer``, nothing of ours in them."""

from __future__ import annotations

from pathlib import Path

from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import NETWORK, PREFIX

SCENARIOS = Path(__file__).resolve().parents[2] / "docker/scenarios/asterisk"
EDGE = f"{NETWORK}.1.11"
SELF = {"carrier": f"{NETWORK}.1.70", "phone": f"{NETWORK}.1.71"}
PARTS = ("carrier", "phone", "fax")
"""What one may be: the first word of its own configuration files."""


class Peer:
    """One foreign Asterisk, on one of the hosts, in one of the parts (default: its host's)."""

    def __init__(self, stage: Stage, host: str, part: str = "") -> None:
        self.stage, self.host, self.part = stage, host, part or host

    def start(self, **values: str) -> None:
        """Starts with the configuration of its part."""
        self.stop()
        values = {"SELF": SELF[self.host], "EDGE": EDGE, **values}
        for file in SCENARIOS.glob("*.conf"):
            if file.name.startswith(PARTS) and not file.name.startswith(self.part):
                continue
            text = file.read_text()
            for name, value in values.items():
                text = text.replace(f"@{name}@", value)
            target = f"/etc/asterisk/{file.name.removeprefix(self.part + '-')}"
            self.run("sh", "-c", f"mkdir -p /etc/asterisk && cat > {target}", given=text)
        self.stage.lab.docker("exec", "-d", PREFIX + self.host, "sh", "-c", "asterisk -f >/tmp/log 2>&1")
        until(f"{self.host} runs", 30, lambda: "fully" in self.cli("core waitfullybooted"), 0.3)
        self.cli("pjsip set logger on")

    def stop(self) -> None:
        """Kills it."""
        self.run("sh", "-c", "pkill -KILL -x asterisk; sleep 0.2; rm -rf /run/asterisk; mkdir /run/asterisk")

    def run(self, *command: str, given: str | None = None) -> str:
        """A command on its host."""
        return self.stage.lab.run(self.host, *command, given=given)

    def cli(self, command: str) -> str:
        """A command of its Asterisk's."""
        return self.run("asterisk", "-rx", command)


def etcd(stage: Stage, *command: str) -> str:
    """etcdctl inside the lab."""
    return stage.lab.run("etcd1", "etcdctl", *command)
