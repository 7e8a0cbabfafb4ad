"""Another version of ari-ha beside the present one: a host of the lab runs the code of an older commit of
this repository, while all others run the checkout's (or the installed) code."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ari_ha.cli.lab import Lab, Struck

PREVIOUS = os.environ.get("ARI_HA_PREVIOUS", "eb1ee6e9a5f722fc511d1d74fab5433792720181")
"""The commit that plays the older version; moved on with each release."""
CHECKOUT = Path(__file__).parents[2]
PLACE = "/var/cache/ari-ha-versions"
OTHER_VERSION = "/run/other-version"
"""What a service's run script reads first: where another version's code is. A guard's ends in ``-guard``."""
COPY_LIMIT_S = 60.0
START_LIMIT_S = 20.0
_FIT = """
import json, os, sys
from importlib import import_module
from ari_ha.runtime.settings import describe
known = {doc.path for doc in describe(getattr(import_module(sys.argv[1]), sys.argv[2]))}
def fit(value, path):
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, inner in value.items():
        here = path + name
        if any(one in (here, here + "_file") or one.startswith(here + ".") for one in known):
            kept[name] = fit(inner, here + ".") if here not in known else inner
        else:
            print("left out:", here)
    return kept
document = json.load(open("/etc/ari-ha/" + sys.argv[3]))
json.dump(fit(document, ""), open("/run/other-" + sys.argv[3], "w"))
"""
"""As an operator gives an older process settings that it knows: the others are refused."""


@dataclass(frozen=True, slots=True)
class Service:
    """How a service is given another version."""

    module: str
    settings: str
    """The module and class of its settings."""
    file: str = "settings.json"
    variable: str = "ARI_HA_SETTINGS"
    """Its settings file, and what the run script is told another one by."""
    words: str = OTHER_VERSION
    """What its run script reads first."""


SERVICES = {
    "app": Service("ari_ha.node.settings", "NodeSettings"),
    "edge": Service("sidecars.edge.settings", "EdgeSettings"),
    "guard": Service(
        "sidecars.guard.settings",
        "GuardSettings",
        "guard.json",
        "ARI_HA_GUARD_SETTINGS",
        f"{OTHER_VERSION}-guard",
    ),
}


def there(commit: str = PREVIOUS) -> bool:
    """Whether this checkout has that commit: one that was cloned without its history has not."""
    command = ["git", "-C", str(CHECKOUT), "cat-file", "-e", f"{commit}^{{commit}}"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def bring(lab: Lab, host: str, commit: str = PREVIOUS) -> str:
    """Puts the code of a commit on a host; where it is there. Raises LabError."""
    from ari_ha.cli.lab import PREFIX, LabError

    if not there(commit):
        raise LabError(f"this checkout has no commit {commit}: there is no older version to run")
    place = f"{PLACE}/{commit[:12]}"
    packed = ["git", "-C", str(CHECKOUT), "archive", "--format=tar", commit, "ari_ha", "sidecars"]
    archive = subprocess.run(packed, capture_output=True, timeout=COPY_LIMIT_S).stdout
    unpack = ["docker", "exec", "-i", PREFIX + host, "sh", "-c", f"mkdir -p {place} && tar -x -C {place}"]
    done = subprocess.run(unpack, input=archive, capture_output=True, timeout=COPY_LIMIT_S)
    if done.returncode:
        raise LabError(f"{host}: {done.stderr.decode(errors='replace').strip()}")
    return place


def run_other(lab: Lab, host: str, service: str, commit: str = PREVIOUS) -> float:
    """The service (one of `SERVICES`) goes on as the version of that commit; when it was told to end."""
    place, its = bring(lab, host, commit), SERVICES[service]
    environment = f"PYTHONPATH={place} PYTHONPYCACHEPREFIX=/var/cache/pycache-other"
    python = f"{environment} /opt/ari-ha/bin/python"
    lab.run(host, "sh", "-c", f"{python} - {its.module} {its.settings} {its.file}", given=_FIT)
    words = f"export {environment} {its.variable}=/run/other-{its.file}\n"
    lab.run(host, "sh", "-c", f"cat > {its.words}", given=words)
    return again(lab, host, service)


def run_own(lab: Lab, host: str, service: str) -> float:
    """The service goes on as the version the lab was started with; when it was told to end."""
    lab.run(host, "rm", "-f", SERVICES[service].words)
    return again(lab, host, service)


def again(lab: Lab, host: str, service: str) -> float:
    """The service is ended as a service manager does it, and started again; when it was told to."""
    return float(lab.run(host, "sh", "-c", f"date +%s.%N && sv term /service/{service}").split()[0])


def runs_other(lab: Lab, host: str, service: str) -> bool:
    """Whether the process that serves is of the other version."""
    from ari_ha.cli.lab import LabError

    pid = lab.child_pid(host, service)
    try:
        return bool(pid) and PLACE in lab.run(host, "cat", f"/proc/{pid}/environ")
    except LabError:
        return False


def app_version_change(lab: Lab, node: str) -> Struck:
    """The node's app is replaced by one of another version; mended by replacing that one again."""
    from ari_ha.cli.lab import Struck, wait_until

    at = run_other(lab, node, "app")

    def mend() -> None:
        wrong = f"{node}: the app of the other version does not run"
        wait_until(wrong, START_LIMIT_S, lambda: runs_other(lab, node, "app"), 0.1)
        run_own(lab, node, "app")

    return Struck(at, mend)
