"""Settings: frozen dataclasses, read from default < file < environment < flag.

A settings class says in a docstring under each field its unit and the reason of
its default. Nested dataclasses are sections. `load` refuses a key it does not
know (naming the nearest one), remembers where each value came from, and calls
``check()`` of every section that has one, where timing budgets are added up.

    loaded = load(NodeSettings, "/etc/ari-ha/settings.json", overrides={"link.listen": "0.0.0.0:7700"})
    loaded.settings.link.listen, loaded.origin("link.listen")     # ..., "flag"

In the file (JSON, or TOML by its suffix) sections are objects. In the environment
``link.listen`` is ``ARI_HA__LINK__LISTEN``; lists have commas or are JSON. A path
may be given without its ``_file``: ``"key"`` sets the field ``key_file``.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import json
import os
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

ENV_PREFIX = "ARI_HA__"
SECRET = "********"
FILE_MAX_BYTES = 4 * 1024 * 1024

T = TypeVar("T")


class SettingsError(ValueError):
    """The settings cannot be used; the text says which value, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """Settings and where their values came from."""

    settings: T
    origins: Mapping[str, str]

    def origin(self, path: str) -> str:
        """``default``, ``file <path>``, ``environment <name>`` or ``flag``."""
        return self.origins.get(path, "default")

    def shown(self) -> dict[str, Any]:
        """Every value by path with its origin, secrets covered; for people."""
        return {
            path: {
                "value": SECRET if field.metadata.get("secret") and value else value,
                "origin": self.origin(path),
            }
            for path, field, value in _leaves(self.settings)
        }


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """What the reference says of one setting."""

    path: str
    type: str
    default: str
    text: str
    secret: bool


def load(
    cls: type[T],
    file: str | os.PathLike[str] | None = None,
    env_prefix: str = ENV_PREFIX,
    overrides: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> Loaded[T]:
    """The settings of a process. ``overrides`` are flags by path; None is "not given".
    Raises `SettingsError`."""
    reader = _Reader(env_prefix)
    document = _read_file(Path(file)) if file is not None else {}
    given = {path: value for path, value in (overrides or {}).items() if value is not None}
    reader.layers = [
        _Layer(document, f"file {file}", False),
        _Layer(
            _nested(_environment(environ if environ is not None else os.environ, env_prefix)),
            "environment",
            True,
        ),
        _Layer(_nested({tuple(path.split(".")): value for path, value in given.items()}), "flag", True),
    ]
    settings = reader.section(cls, "", [layer.values for layer in reader.layers])
    _check(settings, "")
    return Loaded(settings, reader.origins)


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Settings from values alone (tests, tools); refuses and checks as `load` does."""
    reader = _Reader()
    reader.layers = [_Layer(dict(values), "values", False)]
    settings = reader.section(cls, "", [dict(values)])
    _check(settings, "")
    return settings


def describe(cls: type) -> list[FieldDoc]:
    """Every setting with its documentation, in order; the reference is made of it."""
    return list(_describe(cls, ""))


def host_port(text: str, default_port: int | None = None) -> tuple[str, int]:
    """``host:port`` (``[::1]:port`` for IPv6). Raises `SettingsError`."""
    host, colon, port = text.rpartition(":")
    if not colon and default_port is not None:
        return text, default_port
    if not colon or not port.isdigit() or not 0 <= int(port) < 65536:
        raise SettingsError(f"{text!r} is not host:port")
    return host.strip("[]") or "0.0.0.0", int(port)


def check_lease(name: str, *, ttl_ms: int, renew_every_ms: int, election_ms: int, fence_ms: int) -> None:
    """A lease must outlive a missed renewal, an election of etcd, and the time its
    holder needs to stop acting. Raises `SettingsError` with the numbers."""
    needed = 2 * renew_every_ms + election_ms + fence_ms
    if ttl_ms < needed:
        raise SettingsError(
            f"{name}: ttl {ttl_ms} ms is shorter than two renewals ({2 * renew_every_ms}) + an election"
            f" ({election_ms}) + the fence ({fence_ms}) = {needed} ms: raise the ttl or renew more often"
        )


def budget_problems(document: Mapping[str, Any]) -> Iterator[str]:
    """What does not add up in the sections of a settings document that have timing."""
    from ari_ha.adapters.ari_config import AriSettings
    from ari_ha.adapters.link import LinkSettings

    for name, cls in (("ari", AriSettings), ("link", LinkSettings)):
        section = document.get(name)
        if not isinstance(section, Mapping):
            continue
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            build(cls, {key: value for key, value in section.items() if key in known})
        except SettingsError as error:
            yield f"{name}: {error}"


# --- reading ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    """Values of one origin. ``loose``: texts may stand for numbers and lists."""

    values: dict[str, Any]
    origin: str
    loose: bool


class _Reader:
    """Builds sections out of layers and remembers origins."""

    def __init__(self, env_prefix: str = ENV_PREFIX) -> None:
        self._env_prefix = env_prefix
        self.layers: list[_Layer] = []
        self.origins: dict[str, str] = {}

    def section(self, cls: type[T], path: str, values: list[Any]) -> T:
        """One dataclass from the values each layer has for it."""
        hints = typing.get_type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        for layer, given in zip(self.layers, values, strict=True):
            if not isinstance(given, Mapping):
                raise SettingsError(
                    f"{path or 'settings'}: an object is wanted, not {given!r} ({layer.origin})"
                )
            _refuse_unknown(given, fields, path, layer.origin)
        arguments = {}
        for name in fields:
            here = f"{path}.{name}" if path else name
            given = [_pick(layer_values, name, fields) for layer_values in values]
            if not any(found for found, _ in given):
                if _is_section(hints[name]) and _is_missing(fields[name]):
                    arguments[name] = self.section(hints[name], here, [{} for _ in values])
                elif _is_missing(fields[name]):
                    raise SettingsError(f"{here}: must be set (it has no default)")
            elif _is_section(hints[name]):
                arguments[name] = self.section(
                    hints[name], here, [value if found else {} for found, value in given]
                )
            else:
                arguments[name] = self._leaf(hints[name], here, given)
        return cls(**arguments)

    def _leaf(self, kind: Any, path: str, given: list[tuple[bool, Any]]) -> Any:
        """The value of the last layer that has one."""
        index = max(i for i, (found, _) in enumerate(given) if found)
        layer, value = self.layers[index], given[index][1]
        origin = layer.origin
        if origin == "environment":
            origin = f"environment {self._env_prefix}{path.replace('.', '__').upper()}"
        self.origins[path] = origin
        if layer.loose and isinstance(value, str):
            value = _from_text(kind, value)
        return self._convert(kind, path, value, origin, layer.loose)

    def _convert(self, kind: Any, path: str, value: Any, origin: str, loose: bool) -> Any:
        """``value`` as ``kind``; collections of sections are read section by section."""
        inner = _section_inside(kind)
        if inner is not None and isinstance(value, Mapping):
            return {key: self._inner(inner, f"{path}.{key}", item, origin) for key, item in value.items()}
        if inner is not None and isinstance(value, list | tuple):
            return tuple(self._inner(inner, f"{path}.{i}", item, origin) for i, item in enumerate(value))
        try:
            return msgspec.convert(value, kind, strict=not loose)
        except (msgspec.ValidationError, TypeError) as error:
            raise SettingsError(f"{path}: {error} ({origin}: {value!r})") from None

    def _inner(self, cls: type, path: str, value: Any, origin: str) -> Any:
        reader = _Reader()
        reader.layers = [_Layer({}, origin, False)]
        return reader.section(cls, path, [value])


def _refuse_unknown(given: Mapping[str, Any], fields: Mapping[str, Any], path: str, origin: str) -> None:
    for key in given:
        if key in fields or f"{key}_file" in fields:
            continue
        near = difflib.get_close_matches(key, fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(fields)}"
        raise SettingsError(f"{path + '.' if path else ''}{key}: no such setting ({origin}){hint}")


def _pick(given: Mapping[str, Any], name: str, fields: Mapping[str, Any]) -> tuple[bool, Any]:
    """A field's value in one layer; a path may be named without its ``_file``."""
    if name in given:
        return True, given[name]
    short = name.removesuffix("_file")
    if short != name and short not in fields and short in given:
        return True, given[short]
    return False, None


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _is_missing(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _section_inside(kind: Any) -> type | None:
    """The dataclass a tuple, list or mapping holds."""
    sections = [argument for argument in typing.get_args(kind) if _is_section(argument)]
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return sections[0] if sections and not is_union else None


def _from_text(kind: Any, text: str) -> Any:
    """What a text of the environment or a flag stands for."""
    origin = typing.get_origin(kind)
    if origin in (tuple, list, frozenset, set):
        if text.startswith("["):
            return _json(text)
        return [part.strip() for part in text.split(",") if part.strip()]
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return _json(text)
    if kind is bool:
        return {"yes": True, "on": True, "no": False, "off": False}.get(text.lower(), text)
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f"not JSON: {text!r}: {error}") from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        if len(data) > FILE_MAX_BYTES:
            raise SettingsError(f"{path}: larger than {FILE_MAX_BYTES} bytes")
        document = tomllib.loads(data.decode()) if path.suffix == ".toml" else json.loads(data)
    except OSError as error:
        raise SettingsError(f"cannot read the settings file: {error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise SettingsError(f"{path}: an object is wanted")
    return document


def _environment(environ: Mapping[str, str], prefix: str) -> dict[tuple[str, ...], str]:
    return {
        tuple(name.removeprefix(prefix).lower().split("__")): value
        for name, value in environ.items()
        if name.startswith(prefix)
    }


def _nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Values by path as nested objects."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        here = tree
        for part in path[:-1]:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                raise SettingsError(f"{'.'.join(path)}: {part!r} is given as a value too")
        here[path[-1]] = value
    return tree


def _check(settings: Any, path: str) -> None:
    """Calls ``check()`` of every section, the innermost first."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        here = f"{path}.{field.name}" if path else field.name
        inner = (
            value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
        )
        for item in inner:
            if _is_section(type(item)):
                _check(item, here)
    check = getattr(settings, "check", None)
    if check is not None:
        try:
            check()
        except ValueError as error:
            raise SettingsError(f"{path + ': ' if path else ''}{error}") from None


# --- describing ---------------------------------------------------------------------------


def _leaves(settings: Any, path: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        here = f"{path}.{field.name}" if path else field.name
        if _is_section(type(value)):
            yield from _leaves(value, here)
        else:
            yield here, field, value


def _describe(cls: type, path: str) -> Iterator[FieldDoc]:
    hints, texts = typing.get_type_hints(cls), field_texts(cls)
    for field in dataclasses.fields(cls):
        here = f"{path}.{field.name}" if path else field.name
        if _is_section(hints[field.name]):
            yield from _describe(hints[field.name], here)
            continue
        secret = bool(field.metadata.get("secret"))
        yield FieldDoc(
            here, _type_text(hints[field.name]), _default_text(field), texts.get(field.name, ""), secret
        )


def _type_text(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "none: must be set"


def field_texts(cls: type) -> dict[str, str]:
    """The docstring under each field of a class, or the ``#:`` comment above it."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    lines, texts = source.splitlines(), {}
    for statement, after in zip(body.body, [*body.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        text = _comment_above(lines, statement.lineno - 1)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = inspect.cleandoc(str(after.value.value))
        texts[statement.target.id] = " ".join(text.split())
    return texts


def _comment_above(lines: list[str], index: int) -> str:
    comment: list[str] = []
    while index > 0 and lines[index - 1].strip().startswith("#:"):
        index -= 1
        comment.insert(0, lines[index].strip().removeprefix("#:"))
    return " ".join(comment)
