"""The cluster as a command sees it: settings, etcd's keys, the processes' HTTP APIs.

etcd is asked through its own JSON gateway (one request, one answer; a watch is an answer without
end), so a command starts fast and needs nothing but a certificate. Whatever a command writes is a
transaction that compares.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from ari_ha.core.ports.store import Compare, KeyValue, Put, TxnResult
from ari_ha.wire.keyspace import Keys

ETCD_LIMIT_S = 3.0
HTTP_LIMIT_S = 3.0
ANSWER_MAX_BYTES = 16 * 1024 * 1024
LAB_SETTINGS = ".lab/operator/settings.json"


class ClusterError(Exception):
    """The command cannot be carried out; the text says why, for people."""


class EtcdAway(ClusterError):
    """No etcd member answered."""


class HttpRefused(ClusterError):
    """A process answered with an HTTP error status."""

    def __init__(self, status: int, body: Any) -> None:
        reason = body.get("error", body) if isinstance(body, dict) else body
        super().__init__(f"HTTP {status}: {reason}")
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A decoded answer, and the far end's clock when it gave it (whole seconds, UTC)."""

    document: Any
    at_utc_s: float


@dataclass(frozen=True, slots=True)
class CliSettings:
    """Where the cluster is. Any process's settings file has these fields too."""

    cluster: str = "default"
    """Name of the cluster: the second part of every etcd key."""
    endpoints: tuple[str, ...] = ("127.0.0.1:2379",)
    """etcd members, host:port; asked in this order until one answers."""
    ca: str = ""
    """File with the certificate authority of etcd and of the HTTP APIs; empty: no TLS."""
    cert: str = ""
    """File with this command's client certificate."""
    key: str = ""
    """File with its private key."""
    http_token_file: str = ""
    """File with the bearer token of the node apps' and edges' HTTP APIs."""
    processes: Mapping[str, str] = field(default_factory=dict)
    """HTTP addresses by process name, for when etcd cannot be asked for them."""
    source: str = ""
    """The file these came from."""


def load_settings(path: str) -> CliSettings:
    """The settings in ``path``; when the file is not there, those of a lab running
    from this directory. Raises ClusterError when neither can be read."""
    file = Path(path)
    if not file.is_file():
        lab = Path(LAB_SETTINGS)
        if not lab.is_file():
            raise ClusterError(f"no settings at {path} (use --settings or ARI_HA_SETTINGS), and no lab here")
        file = lab
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ClusterError(f"cannot read {file}: {error}") from error
    return settings_of(document, file)


def settings_of(document: Mapping[str, Any], file: Path) -> CliSettings:
    """The settings in a decoded file. Relative paths are relative to the file."""

    def path_of(value: Any) -> str:
        text = str(value or "")
        if text and not os.path.isabs(text) and not os.path.exists(text):
            text = str(file.parent / text)
        return text

    etcd = document.get("etcd") or {}
    endpoints = etcd.get("endpoints") or ["127.0.0.1:2379"]
    http = document.get("http")
    token_file = document.get("http_token_file") or (http.get("token_file") if isinstance(http, dict) else "")
    return CliSettings(
        cluster=str(document.get("cluster") or "default"),
        endpoints=tuple(str(endpoint) for endpoint in endpoints),
        ca=path_of(etcd.get("ca")),
        cert=path_of(etcd.get("cert")),
        key=path_of(etcd.get("key")),
        http_token_file=path_of(token_file),
        processes={
            name: str(value["http"])
            for part in (document.get("nodes"), document.get("edges"), document.get("guards"))
            if isinstance(part, dict)
            for name, value in part.items()
            if isinstance(value, dict) and value.get("http")
        },
        source=str(file),
    )


class Cluster:
    """One cluster, asked synchronously."""

    def __init__(self, settings: CliSettings) -> None:
        self.settings = settings
        self.keys = Keys(settings.cluster)
        self._tls = _tls(settings)
        self._member = 0

    @classmethod
    def open(cls, path: str) -> Cluster:
        """The cluster of the settings file at ``path``."""
        return cls(load_settings(path))

    # -- etcd

    def get(self, key: str) -> KeyValue | None:
        """The key as it is now (linearizable), or None."""
        found = self._range({"key": _b64(key)})
        return found[0] if found else None

    def family(self, family: str) -> list[KeyValue]:
        """Every key under ``nodes/``, ``calls/`` … of this cluster, in key order."""
        return self.under(self.keys.prefix(family))

    def under(self, prefix: str) -> list[KeyValue]:
        """Every key that starts with ``prefix``."""
        return self._range({"key": _b64(prefix), "range_end": _b64(_after(prefix))})

    def snapshot(self, prefix: str) -> tuple[int, list[KeyValue]]:
        """The store's revision, and every key that starts with ``prefix`` as it was then."""
        reply = self.ask("kv/range", {"key": _b64(prefix), "range_end": _b64(_after(prefix))})
        return int(reply["header"]["revision"]), [_key_value(raw) for raw in reply.get("kvs", [])]

    def revision(self) -> int:
        """The store's revision now."""
        return self.snapshot(self.keys.prefix("clerk"))[0]

    def writes_under(self, prefix: str) -> int:
        """How often the keys that start with ``prefix`` have been written since they were made (etcd's
        ``version`` of each)."""
        reply = self.ask("kv/range", {"key": _b64(prefix), "range_end": _b64(_after(prefix))})
        return sum(int(raw["version"]) for raw in reply.get("kvs", []))

    def txn(self, compares: Iterable[Compare], puts: Iterable[Put], deletes: Iterable[str] = ()) -> TxnResult:
        """One transaction that compares mod_revisions."""
        compares, puts = list(compares), list(puts)
        names = {"=": "EQUAL", "<": "LESS", ">": "GREATER", "!=": "NOT_EQUAL"}
        reply = self.ask(
            "kv/txn",
            {
                "compare": [
                    {
                        "key": _b64(c.key),
                        "target": "MOD",
                        "result": names[c.op],
                        "mod_revision": str(c.mod_revision),
                    }
                    for c in compares
                ],
                "success": [
                    *({"request_put": {"key": _b64(p.key), "value": _b64(p.value)}} for p in puts),
                    *({"request_delete_range": {"key": _b64(key)}} for key in deletes),
                ],
                "failure": [{"request_range": {"key": _b64(c.key)}} for c in compares],
            },
        )
        revision = int(reply.get("header", {}).get("revision", 0))
        if reply.get("succeeded"):
            return TxnResult(True, revision)
        current = [
            _key_value(raw)
            for part in reply.get("responses", [])
            for raw in part.get("response_range", {}).get("kvs", [])
        ]
        return TxnResult(False, revision, tuple(current))

    def ask(self, method: str, body: Mapping[str, Any], endpoint: str = "") -> dict[str, Any]:
        """One call of etcd's v3 gateway at ``endpoint``, or at the first member that
        answers. Raises EtcdAway or ClusterError."""
        if endpoint:
            return self._ask_one(endpoint, method, body)
        endpoints = self.settings.endpoints
        errors = []
        for turn in range(len(endpoints)):
            at = (self._member + turn) % len(endpoints)
            try:
                reply = self._ask_one(endpoints[at], method, body)
            except EtcdAway as error:
                errors.append(str(error))
                continue
            self._member = at
            return reply
        raise EtcdAway("etcd does not answer: " + "; ".join(errors))

    def _ask_one(self, endpoint: str, method: str, body: Mapping[str, Any]) -> dict[str, Any]:
        request = self._request(endpoint, method, body)
        try:
            with _opener(self._tls).open(request, timeout=ETCD_LIMIT_S) as reply:
                return json.loads(reply.read(ANSWER_MAX_BYTES))
        except urllib.error.HTTPError as error:
            text = error.read(2000).decode(errors="replace")
            if error.code in (429, 500, 502, 503, 504):
                raise EtcdAway(f"{endpoint}: {_message(text)}") from error
            raise ClusterError(f"etcd at {endpoint} refused: {_message(text)}") from error
        except (OSError, ValueError) as error:
            raise EtcdAway(f"{endpoint}: {getattr(error, 'reason', error)}") from error

    def stream(
        self, endpoint: str, method: str, body: Mapping[str, Any], quiet_max_s: float
    ) -> Iterator[bytes]:
        """The lines of an answer that does not end. They do, without a word, when nothing came for so
        long or the member is gone."""
        request = self._request(endpoint, method, body)
        gone = contextlib.suppress(OSError, http.client.HTTPException)
        with gone, _opener(self._tls).open(request, timeout=quiet_max_s) as reply:
            yield from reply

    def _request(self, endpoint: str, method: str, body: Mapping[str, Any]) -> urllib.request.Request:
        scheme = "https" if self._tls else "http"
        address = endpoint if "://" in endpoint else f"{scheme}://{endpoint}"
        return urllib.request.Request(
            f"{address}/v3/{method}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )

    def _range(self, body: dict[str, Any]) -> list[KeyValue]:
        reply = self.ask("kv/range", {**body, "sort_order": "ASCEND", "sort_target": "KEY"})
        return [_key_value(raw) for raw in reply.get("kvs", [])]

    # -- the processes' HTTP APIs

    def http(
        self, base: str, path: str, method: str = "GET", body: Any = None, limit_s: float = HTTP_LIMIT_S
    ) -> Any:
        """What the process at ``base`` (``nodes/<node>.http`` or ``edges/<edge>.http``)
        answers. Raises HttpRefused or ClusterError."""
        return self.probe(base, path, method, body, limit_s).document

    def probe(
        self, base: str, path: str, method: str = "GET", body: Any = None, limit_s: float = HTTP_LIMIT_S
    ) -> HttpAnswer:
        """As `http`, with the far end's clock. Raises HttpRefused or ClusterError."""
        if not base:
            raise ClusterError("this process announces no HTTP address")
        address = base if "://" in base else f"http://{base}"
        headers = {"Accept": "application/json"}
        token = self._token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(
            address.rstrip("/") + path, data=data, headers=headers, method=method
        )
        try:
            with _opener(self._tls).open(request, timeout=limit_s) as reply:
                date = reply.headers.get("Date")
                at_utc_s = parsedate_to_datetime(date).timestamp() if date else 0.0
                return HttpAnswer(_decoded(reply.read(ANSWER_MAX_BYTES)), at_utc_s)
        except urllib.error.HTTPError as error:
            raise HttpRefused(error.code, _decoded(error.read(ANSWER_MAX_BYTES))) from error
        except (OSError, ValueError) as error:
            raise ClusterError(f"{address}: {getattr(error, 'reason', error)}") from error

    def _token(self) -> str:
        if not self.settings.http_token_file:
            return ""
        try:
            return Path(self.settings.http_token_file).read_text().strip()
        except OSError as error:
            raise ClusterError(f"cannot read the token file: {error}") from error


def quote(part: str) -> str:
    """``part`` as one segment of an HTTP path."""
    return urllib.parse.quote(part, safe="")


def decode_json(item: KeyValue) -> dict[str, Any]:
    """The JSON object stored in ``item``, unknown fields included; {} when it is none."""
    try:
        value = json.loads(item.value)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _tls(settings: CliSettings) -> ssl.SSLContext | None:
    if not settings.ca:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        if settings.cert:
            context.load_cert_chain(settings.cert, settings.key or None)
    except OSError as error:
        raise ClusterError(f"cannot use the certificates of {settings.source}: {error}") from error
    return context


def _opener(tls: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if tls is not None:
        handlers.append(urllib.request.HTTPSHandler(context=tls))
    return urllib.request.build_opener(*handlers)


def _key_value(raw: Mapping[str, Any]) -> KeyValue:
    return KeyValue(
        key=base64.b64decode(raw["key"]).decode(),
        value=base64.b64decode(raw.get("value", "")),
        mod_revision=int(raw.get("mod_revision", 0)),
        create_revision=int(raw.get("create_revision", 0)),
        lease=int(raw.get("lease", 0)),
    )


def _b64(data: str | bytes) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def _after(prefix: str) -> bytes:
    """The first key behind all keys that start with ``prefix`` (ours end in ``/``)."""
    raw = bytearray(prefix.encode())
    raw[-1] += 1
    return bytes(raw)


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data) if data else {}
    except ValueError:
        return data.decode(errors="replace")


def _message(text: str) -> str:
    try:
        decoded = json.loads(text)
    except ValueError:
        return text.strip()
    return str(decoded.get("message") or decoded.get("error") or text)
