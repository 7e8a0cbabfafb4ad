"""The layers of the house, checked by import-linter with the contracts of pyproject.toml."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ari_ha", "sidecars")


def test_imports_point_down(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_every_name_imported_is_there() -> None:
    """Imports inside functions too: they fail only when somebody calls the function."""
    missing = []
    for file in [*ROOT.glob("ari_ha/**/*.py"), *ROOT.glob("sidecars/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in PACKAGES:
                continue
            module = importlib.import_module(node.module)
            for name in [alias.name for alias in node.names if not hasattr(module, alias.name)]:
                try:
                    importlib.import_module(f"{node.module}.{name}")
                except ModuleNotFoundError:
                    missing.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.module}.{name}")
    assert not missing
