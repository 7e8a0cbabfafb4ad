"""Settings: order of origins, refusals with advice, documentation from the source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from ari_ha.adapters.ari_config import AriSettings
from ari_ha.adapters.link import LinkSettings
from ari_ha.runtime.settings import (
    SettingsError,
    budget_problems,
    build,
    check_lease,
    describe,
    host_port,
    load,
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer."""

    sip: str
    """Address."""

    weight: int = 1
    """Share."""


@dataclass(frozen=True, slots=True)
class Http:
    """A section."""

    listen: str = "127.0.0.1:8080"
    """Host and port. Loopback unless asked."""

    token_file: str = ""
    """Path. Whoever can read it may ask."""

    token: str = field(default="", metadata={"secret": True})
    """Text."""


@dataclass(frozen=True, slots=True)
class Demo:
    """A process."""

    name: str
    """Name."""

    #: Milliseconds. A quarter
    #: of the limit.
    ping_ms: int = 250

    limit_ms: int = 1000
    """Milliseconds. Long enough."""

    ratio: float = 0.5
    """Share."""

    on: bool = False
    """Whether."""

    tags: tuple[str, ...] = ()
    """Names."""

    http: Http = field(default_factory=Http)
    """Section."""

    peers: Mapping[str, Peer] = field(default_factory=dict)
    """Peers by name."""

    def check(self) -> None:
        if self.limit_ms < 3 * self.ping_ms:
            raise ValueError("limit_ms is below three pings: raise it")


@pytest.fixture
def file(tmp_path):
    def write(document, name="settings.json"):
        path = tmp_path / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write


def test_each_origin_beats_the_one_before(file):
    path = file({"name": "file", "ping_ms": 100, "ratio": 0.1, "http": {"listen": "a:1", "token_file": "f"}})
    environ = {"ARI_HA__PING_MS": "200", "ARI_HA__HTTP__LISTEN": "b:2", "ARI_HA_OTHER": "x"}
    loaded = load(Demo, path, environ=environ, overrides={"http.listen": "c:3", "ratio": None})
    assert loaded.settings == Demo("file", 200, 1000, 0.1, http=Http("c:3", "f"))
    assert loaded.origin("limit_ms") == "default"
    assert loaded.origin("name") == f"file {path}"
    assert loaded.origin("ping_ms") == "environment ARI_HA__PING_MS"
    assert loaded.origin("http.listen") == "flag"


def test_texts_of_the_environment_become_values():
    environ = {
        "ARI_HA__NAME": "7", "ARI_HA__RATIO": "0.25", "ARI_HA__ON": "yes", "ARI_HA__TAGS": "a, b",
        "ARI_HA__PEERS": '{"x":{"sip":"h:1"}}',
    }  # fmt: skip
    settings = load(Demo, environ=environ).settings
    assert (settings.name, settings.ratio, settings.on, settings.tags) == ("7", 0.25, True, ("a", "b"))
    assert settings.peers == {"x": Peer("h:1")}


def test_toml_and_nested_collections(file):
    path = file('name = "x"\n[peers.one]\nsip = "h:1"\nweight = 2\n', "settings.toml")
    assert load(Demo, path, environ={}).settings.peers == {"one": Peer("h:1", 2)}


def test_path_may_be_named_without_file(file):
    path = file({"ca": "/ca.pem", "cert": "/cert.pem", "key": "/key.pem"})
    loaded = load(LinkSettings, path, environ={})
    assert loaded.settings.key_file == "/key.pem"
    assert loaded.origin("key_file") == f"file {path}"


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"name": "x", "ping_mss": 1}, "did you mean 'ping_ms'"),
        ({"name": "x", "http": {"lisen": ""}}, "http.lisen: no such setting"),
        ({"name": "x", "peers": {"one": {"sip": "h", "wait": 1}}}, "peers.one.wait"),
        ({"name": "x", "http": 5}, "http: an object is wanted"),
        ({"name": "x", "ping_ms": "fast"}, "ping_ms: Expected `int`"),
        ({"name": "x", "ping_ms": "250"}, "ping_ms: Expected `int`"),
        ({}, "name: must be set"),
        ({"name": "x", "limit_ms": 100}, "below three pings"),
        ("{", "settings.json"),
        ("[]", "an object is wanted"),
    ],
)
def test_refusals_name_the_value_and_the_reason(file, document, text):
    with pytest.raises(SettingsError, match=text.replace(".", r"\.")):
        load(Demo, file(document), environ={})


def test_unknown_variable_and_flag_are_refused():
    with pytest.raises(SettingsError, match="did you mean 'listen'"):
        load(Demo, environ={"ARI_HA__NAME": "x", "ARI_HA__HTTP__LISTN": "a:1"})
    with pytest.raises(SettingsError, match="nmae"):
        load(Demo, environ={}, overrides={"nmae": "x"})


def test_missing_file_is_a_settings_error(tmp_path):
    with pytest.raises(SettingsError, match="cannot read"):
        load(Demo, tmp_path / "none.json", environ={})


def test_secrets_are_covered_when_shown():
    shown = load(Demo, environ={"ARI_HA__NAME": "x", "ARI_HA__HTTP__TOKEN": "t0p"}).shown()
    assert shown["http.token"]["value"] == "********"
    assert shown["name"] == {"value": "x", "origin": "environment ARI_HA__NAME"}


def test_documentation_comes_from_the_source():
    docs = {doc.path: doc for doc in describe(Demo)}
    assert docs["ping_ms"].text == "Milliseconds. A quarter of the limit."
    assert docs["http.listen"].text == "Host and port. Loopback unless asked."
    assert docs["name"].default == "none: must be set" and docs["limit_ms"].default == "1000"
    assert docs["http.token"].secret


@pytest.mark.parametrize("cls", [AriSettings, LinkSettings], ids=lambda cls: cls.__name__)
def test_settings_of_adapters_are_documented_and_add_up(cls):
    build(cls, {})
    assert [doc.path for doc in describe(cls) if not doc.text] == []


def test_budget_problems_of_a_document():
    good = {"ari": {"username": "x", "nothing": 1}, "link": {"listen": "h:1"}}
    assert list(budget_problems(good)) == []
    (problem,) = budget_problems({"link": {"ping_every_ms": 900}})
    assert "link" in problem and "ping more often" in problem


def test_lease_budget():
    check_lease("nodes", ttl_ms=5000, renew_every_ms=1000, election_ms=600, fence_ms=1000)
    with pytest.raises(SettingsError, match="raise the ttl"):
        check_lease("nodes", ttl_ms=2000, renew_every_ms=1000, election_ms=600, fence_ms=1000)


def test_host_port():
    assert host_port("h:1") == ("h", 1)
    assert host_port("[::1]:7") == ("::1", 7)
    assert host_port("h", 9) == ("h", 9)
    for text in ("h", "h:", "h:x", "h:70000"):
        with pytest.raises(SettingsError):
            host_port(text)
