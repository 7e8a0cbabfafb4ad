"""The documentation is complete: every verb, setting and etcd key is in docs/."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import typer.main

import ari_ha
import sidecars
from ari_ha.wire import keyspace

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def documented() -> str:
    return "\n".join(path.read_text() for path in sorted(DOCS.rglob("*.md")))


@pytest.fixture(scope="module")
def text() -> str:
    found = documented()
    if not found:
        pytest.skip("docs/ is not written yet")
    return found


def verbs() -> list[str]:
    """Every command of the command line, as people type it."""
    from ari_ha.cli.main import app

    found = []

    def walk(command: object, words: list[str]) -> None:
        children = getattr(command, "commands", None)
        if children:
            for name, child in children.items():
                walk(child, [*words, name])
        else:
            found.append(" ".join(words))

    walk(typer.main.get_command(app), ["ari-ha"])
    return found


def families() -> list[str]:
    """The first part of every etcd key, from the key space itself."""
    keys = keyspace.Keys("c")
    found = set()
    for name, method in inspect.getmembers(keys, inspect.ismethod):
        if name in ("prefix", "split") or name.startswith("_"):
            continue
        arguments = ["x"] * len(inspect.signature(method).parameters)
        found.add(keys.split(method(*arguments))[0])
    return sorted(found)


def settings() -> list[tuple[str, str]]:
    """(module, field) of every settings dataclass of a process."""
    found = []
    for package in (ari_ha, sidecars):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith(("settings", "_config")) or ".sip." in module.name:
                continue
            loaded = importlib.import_module(module.name)
            for _, kind in inspect.getmembers(loaded, inspect.isclass):
                if dataclasses.is_dataclass(kind) and kind.__module__ == module.name:
                    found += [(f"{kind.__name__}", field.name) for field in dataclasses.fields(kind)]
    return found


def test_there_are_verbs_families_and_settings() -> None:
    assert "ari-ha status" in verbs() and "ari-ha config load" in verbs()
    assert {"nodes", "edges", "vips", "calls", "dialogs", "agents", "queues", "secret"} <= set(families())


def test_every_verb_is_documented(text: str) -> None:
    missing = [verb for verb in verbs() if verb not in text]
    assert not missing, missing


def test_every_etcd_key_family_is_documented(text: str) -> None:
    missing = [family for family in families() if not re.search(rf"`{family}/", text)]
    assert not missing, missing


def test_every_setting_is_documented(text: str) -> None:
    missing = sorted({f"{kind}.{name}" for kind, name in settings() if f"`{name}`" not in text})
    assert not missing, missing


def test_every_command_explains_itself() -> None:
    from ari_ha.cli.main import app

    def walk(command: object, words: str) -> list[str]:
        silent = [] if getattr(command, "help", "") else [words]
        for name, child in (getattr(command, "commands", None) or {}).items():
            silent += walk(child, f"{words} {name}")
        return silent

    assert not walk(typer.main.get_command(app), "ari-ha")


def test_every_value_in_etcd_explains_itself() -> None:
    silent = [kind.__name__ for kind in keyspace.Value.__subclasses__() if not kind.__doc__]
    assert not silent, silent
