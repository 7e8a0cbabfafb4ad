"""The documentation is complete and true of the code: every verb, setting, etcd key and
HTTP route is in docs/, the generated reference is up to date, and every link leads
somewhere."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.machinery
import importlib.util
import inspect
import json
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

import ari_ha
import sidecars
from ari_ha.wire import keyspace

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATOR = ROOT / "tools" / "generate-reference"
GENERATED = ("reference/", "internals/state-tables.md")
OTHER_PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "sidecars/edge/README.md")]
PAGES = [*OTHER_PAGES, *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
ROUTE = re.compile(r"\"(GET|POST|PUT|DELETE) (/v1/[^\"]+)\"")


def load_generator() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("generate_reference", str(GENERATOR))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text() -> str:
    """Everything written, generated pages too."""
    return "\n".join(path.read_text() for path in PAGES)


@pytest.fixture(scope="module")
def prose() -> str:
    """What people wrote: without the generated pages."""
    return "\n".join(
        path.read_text()
        for path in PAGES
        if not path.is_relative_to(DOCS) or not str(path.relative_to(DOCS)).startswith(GENERATED)
    )


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
    """(class, field) of every settings dataclass of a process."""
    found = []
    for package in (ari_ha, sidecars):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("settings") or module.name == "ari_ha.runtime.settings":
                continue
            loaded = importlib.import_module(module.name)
            for name, kind in inspect.getmembers(loaded, inspect.isclass):
                if dataclasses.is_dataclass(kind) and kind.__module__ == module.name:
                    found += [(name, field.name) for field in dataclasses.fields(kind)]
    return found


# --- complete -----------------------------------------------------------------------------


def test_there_are_verbs_families_and_settings() -> None:
    assert "ari-ha status" in verbs() and "ari-ha config load" in verbs()
    assert {"nodes", "edges", "vips", "calls", "dialogs", "agents", "queues", "secret"} <= set(families())
    assert ("EdgeSettings", "vip") in settings()


def test_every_verb_is_documented(prose: str) -> None:
    missing = [verb for verb in verbs() if verb not in prose]
    assert not missing, f"say in docs/operate/command-line.md what they are for: {missing}"


def test_every_etcd_key_family_is_documented(prose: str) -> None:
    missing = [family for family in families() if not re.search(rf"`{family}/", prose)]
    assert not missing, missing


def test_every_setting_is_documented(text: str) -> None:
    missing = [f"{kind}.{name}" for kind, name in settings() if not re.search(rf"[`.]{name}[`.\[]", text)]
    assert not missing, f"run tools/generate-reference: {missing}"


def routes() -> set[str]:
    """``GET /v1/calls/{call}`` … of the node app and the edge."""
    from ari_ha.node.wiring import AGENT_VERBS

    sources = [*(ROOT / "ari_ha/node").rglob("*.py"), *(ROOT / "sidecars").rglob("*.py")]
    written = {route for path in sources for route in ROUTE.findall(path.read_text())}
    plain = {f"{method} {re.sub(r':[^}]*}', '}', path)}" for method, path in written if "{verb}" not in path}
    return plain | {f"POST /v1/agents/{{agent}}/{verb}" for verb in AGENT_VERBS}


def test_every_route_is_documented(prose: str) -> None:
    assert len(routes()) > 5
    missing = [route for route in sorted(routes()) if f"`{route}`" not in prose]
    assert not missing, f"docs/operate/http-api.md: {missing}"


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


# --- true ---------------------------------------------------------------------------------


def test_the_reference_is_what_the_code_says() -> None:
    pages = load_generator().pages()
    stale = [name for name, text in pages.items() if (DOCS / name).read_text() != text]
    assert not stale, f"run tools/generate-reference: {stale}"


def test_the_example_settings_can_be_used() -> None:
    from ari_ha.runtime.settings import build
    from sidecars.edge.settings import EdgeSettings

    example = build(EdgeSettings, json.loads((ROOT / "sidecars/edge/settings.example.json").read_text()))
    assert example.vip == "pair1"


def test_the_settings_on_the_install_page_can_be_used() -> None:
    from ari_ha.cli.config import read_directory
    from ari_ha.node.settings import NodeSettings
    from ari_ha.runtime.settings import build

    examples = re.findall(r"```json\n(.*?)```", (DOCS / "operate/install.md").read_text(), re.DOTALL)
    node, directory = (json.loads(example) for example in examples)
    assert build(NodeSettings, node).node == "ast1"
    paths = {path for path, _ in read_directory(directory)}
    assert paths >= {"agents/1001", "users/1001", "queues/sales/config"}


# --- whole --------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = set()
    for line in FENCE.sub("", path.read_text()).splitlines():
        if line.startswith("#"):
            words = line.lstrip("#").strip().lower().replace("`", "")
            found.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(CODE.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken, broken


def test_every_page_can_be_reached() -> None:
    """From README and index, by links."""
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        targets = [target.partition("#")[0] for target in LINK.findall(page.read_text())]
        waiting += [(page.parent / target).resolve() for target in targets if target and "://" not in target]
    alone = sorted(str(p.relative_to(ROOT)) for p in DOCS.rglob("*.md") if p not in reached)
    assert not alone, alone
