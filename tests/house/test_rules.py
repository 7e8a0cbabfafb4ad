"""House rules a program can check: pure deciding code, small modules, words not used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PURE = ("core", "sip", "wire", "machines", "checkers")
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 80
GENERATED = {"ari_ha/wire/ari.py", "ari_ha/wire/ari_operations.py"}
GENERATED_DIRS = ("ari_ha/wire/etcd_proto/",)
NOT_NAMES = {"manager", "helper", "helpers", "utils", "util", "misc"}

WORLDLY_MODULES = {
    "asyncio", "socket", "time", "random", "secrets", "uuid", "os", "threading", "logging", "subprocess",
    "select", "signal", "sched",
}  # fmt: skip
WORLDLY_CALLS = {
    ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today"),
    ("time", "time"), ("time", "monotonic"), ("time", "sleep"), ("os", "urandom"), ("uuid", "uuid4"),
    ("random", "random"), ("secrets", "token_hex"),
}  # fmt: skip
WORLDLY_BUILTINS = {"open", "input", "print", "breakpoint"}


def sources(*below: str) -> list[Path]:
    found = [path for part in below for path in sorted((ROOT / part).rglob("*.py"))]
    return [path for path in found if not str(path.relative_to(ROOT)).startswith(GENERATED_DIRS)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


CODE = sources("ari_ha", "sidecars")
PURE_CODE = sources(*(f"ari_ha/{part}" for part in PURE))


@pytest.mark.parametrize("path", PURE_CODE, ids=name_of)
def test_deciding_code_asks_nothing_of_the_world(path: Path) -> None:
    """No clock, no chance, no sockets, no files: they are arguments."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [(node.module or "").split(".")[0]]
        elif isinstance(node, ast.Call):
            names = []
            call = node.func
            if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name):
                if (call.value.id, call.attr) in WORLDLY_CALLS:
                    found.append(f"{call.value.id}.{call.attr}() in line {node.lineno}")
            elif isinstance(call, ast.Name) and call.id in WORLDLY_BUILTINS:
                found.append(f"{call.id}() in line {node.lineno}")
        elif isinstance(node, ast.AsyncFunctionDef | ast.Await):
            names = []
            found.append(f"async code in line {node.lineno}")
        else:
            continue
        found += [f"imports {name} in line {node.lineno}" for name in names if name in WORLDLY_MODULES]
    assert not found, "; ".join(found)


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_a_module_fits_in_the_head(path: Path) -> None:
    if name_of(path) in GENERATED:
        pytest.skip("generated")
    lines = len(path.read_text().splitlines())
    assert lines <= MODULE_LINES_MAX, f"{lines} lines; the limit is {MODULE_LINES_MAX}"


def test_functions_fit_on_a_screen() -> None:
    """About fifty lines; tables and generated code aside, never more than the limit."""
    found = []
    for path in CODE:
        if name_of(path) in GENERATED:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    found.append(f"{name_of(path)}:{node.lineno} {node.name}: {length} lines")
    assert not found, "\n".join(found)


def test_every_module_says_what_it_is() -> None:
    silent = [
        name_of(path)
        for path in CODE
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert not silent, silent


def test_words_that_are_not_names() -> None:
    """*manager*, *helper*, *utils* say nothing (house rule 10)."""
    found = []
    for path in CODE:
        if set(path.stem.split("_")) & NOT_NAMES:
            found.append(name_of(path))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                words = "".join(f" {c.lower()}" if c.isupper() else c for c in node.name).split()
                if set(words) & NOT_NAMES:
                    found.append(f"{name_of(path)}: {node.name}")
    assert not found, found


def test_no_bare_except() -> None:
    """Only a process's outermost loop may catch everything, and says so (house rule 7)."""
    found = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{name_of(path)}:{node.lineno}")
    assert not found, found


def test_nothing_is_left_to_do() -> None:
    """No leftovers: a thing is done, or it is in the plan."""
    words = ("FIX" + "ME", "TO" + "DO", "XX" + "X")
    found = [name_of(path) for path in CODE if any(word in path.read_text() for word in words)]
    assert not found, found


@pytest.mark.parametrize("path", sources("tests"), ids=name_of)
def test_what_needs_the_lab_is_where_the_makefile_looks_for_it(path: Path) -> None:
    if "mark.lab" in path.read_text().replace('"mark.lab"', ""):
        assert path.parent.name in ("contract", "integration", "chaos")
