"""Digest authentication (RFC 7616, algorithms of RFC 8760): both sides of it, qop=auth.

A nonce is a signed timestamp, so any process that has the secret can verify what another one has issued, and
none has to remember it; only the nonce counts seen are kept, in a bounded window.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ari_ha.sip.fields import SipParseError
from ari_ha.sip.message import Request
from ari_ha.sip.uri import SipUri, quote, split_outside_quotes, unquote

ALGORITHMS: tuple[str, ...] = ("SHA-256", "MD5")
"""Strongest first: the order they are offered in (RFC 8760 section 2.3) and preferred in."""
NONCES_MAX_COUNT = 20_000
"""Nonces whose counts are remembered; the oldest fall out first."""
COUNTS_WINDOW = 64
"""How far a nonce count may lag behind the highest one: UDP reorders, and each may be used once."""
_HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are to a far side that challenges us: a password, or the HA1 per algorithm."""

    username: str
    password: str = field(default="", repr=False)
    ha1: Mapping[str, str] = field(default_factory=dict, repr=False)

    def secret_for(self, algorithm: str, realm: str) -> str | None:
        """The HA1 for an algorithm, None when we have nothing to compute it from."""
        if self.password:
            return ha1(algorithm, self.username, realm, self.password)
        return self.ha1.get(algorithm)


def _hash(algorithm: str, text: str) -> str:
    return _HASHES[algorithm](text.encode("utf-8", "replace")).hexdigest()


def ha1(algorithm: str, username: str, realm: str, password: str) -> str:
    """H(username:realm:password) (RFC 7616 section 3.4.2): what is stored instead of passwords."""
    return _hash(algorithm, f"{username}:{realm}:{password}")


def _canonical_algorithm(name: str) -> str:
    return name.strip().upper() or "MD5"


def parse_digest(value: str) -> dict[str, str] | None:
    """The parameters of a Digest challenge or response, None for another scheme."""
    scheme, _, rest = value.strip().partition(" ")
    if scheme.lower() != "digest":
        return None
    params: dict[str, str] = {}
    for item in split_outside_quotes(rest, ","):
        name, equals, content = item.partition("=")
        if equals:
            params[name.strip().lower()] = unquote(content.strip())
    return params


def _response(algorithm: str, secret: str, method: str, params: Mapping[str, str]) -> str:
    """The request-digest (RFC 7616 section 3.4.1); without qop, as RFC 2069 had it."""
    ha2 = _hash(algorithm, f"{method}:{params.get('uri', '')}")
    nonce = params.get("nonce", "")
    if not params.get("qop"):
        return _hash(algorithm, f"{secret}:{nonce}:{ha2}")
    middle = f"{nonce}:{params.get('nc', '')}:{params.get('cnonce', '')}:{params['qop']}"
    return _hash(algorithm, f"{secret}:{middle}:{ha2}")


def authorization(
    credentials: Credentials,
    challenges: Sequence[str],
    method: str,
    uri: str,
    cnonce: str,
    nc: int = 1,
) -> str | None:
    """The Authorization value for the strongest challenge we can answer; None when there is none."""
    usable: dict[str, dict[str, str]] = {}
    for value in challenges:
        params = parse_digest(value)
        if params is None or "nonce" not in params:
            continue
        usable.setdefault(_canonical_algorithm(params.get("algorithm", "")), params)
    for algorithm in ALGORITHMS:
        challenge = usable.get(algorithm)
        if challenge is None:
            continue
        secret = credentials.secret_for(algorithm, challenge.get("realm", ""))
        offered = [item.strip().lower() for item in challenge.get("qop", "").split(",") if item.strip()]
        if secret is None or (offered and "auth" not in offered):
            continue
        return _authorization(
            credentials, algorithm, secret, challenge, bool(offered), method, uri, cnonce, nc
        )
    return None


def _authorization(
    credentials: Credentials,
    algorithm: str,
    secret: str,
    challenge: Mapping[str, str],
    qop: bool,
    method: str,
    uri: str,
    cnonce: str,
    nc: int,
) -> str:
    params = {"nonce": challenge["nonce"], "uri": uri}
    if qop:
        params |= {"qop": "auth", "nc": f"{nc:08x}", "cnonce": cnonce}
    digest = _response(algorithm, secret, method, params)
    fields = [
        f"username={quote(credentials.username)}",
        f"realm={quote(challenge.get('realm', ''))}",
        f"nonce={quote(params['nonce'])}",
        f"uri={quote(uri)}",
        f'response="{digest}"',
        f"algorithm={algorithm}",
    ]
    if "opaque" in challenge:
        fields.append(f"opaque={quote(challenge['opaque'])}")
    if qop:
        fields += [f"cnonce={quote(cnonce)}", "qop=auth", f"nc={params['nc']}"]
    return "Digest " + ", ".join(fields)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an Authorization header."""

    ok: bool
    username: str = ""
    reason: str = ""
    """When not ok: "missing", "stale", "replay", "unknown-user", "wrong", "uri" or "malformed"."""

    @property
    def stale(self) -> bool:
        """Whether the next challenge says stale=true: the secret was right, only the nonce was not."""
        return self.reason == "stale"


class DigestAuthority:
    """The UAS side: issues challenges and verifies what comes back.

    `now` may be wall-clock time when several processes verify each other's nonces; it only has to be the same
    clock for all of them.
    """

    def __init__(self, realm: str, secret: bytes, *, lifetime_s: float = 300.0) -> None:
        self.realm = realm
        self._secret = secret
        self.lifetime_s = lifetime_s
        """How long a nonce is good; after it, one round trip with stale=true."""
        self._counts: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Nonce to highest count and the bits of those just below it."""

    def challenge(
        self, now: float, salt: str, *, stale: bool = False, algorithms: Sequence[str] = ALGORITHMS
    ) -> list[str]:
        """Header values for WWW-Authenticate (or Proxy-Authenticate), one per algorithm, same nonce."""
        nonce = self._nonce(int(now * 1000), salt)
        tail = ", stale=true" if stale else ""
        return [
            f'Digest realm={quote(self.realm)}, nonce="{nonce}", algorithm={algorithm}, qop="auth"{tail}'
            for algorithm in algorithms
        ]

    def _nonce(self, stamp_ms: int, salt: str) -> str:
        salt = "".join(char for char in salt if char.isalnum())[:32]
        text = f"{stamp_ms:x}.{salt}"
        return f"{text}.{self._sign(text)}"

    def _sign(self, text: str) -> str:
        message = f"{self.realm}|{text}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()[:32]

    def verify(self, request: Request, ha1s: Mapping[str, Mapping[str, str]] | None, now: float) -> Verdict:
        """Check a request's Authorization; `ha1s` is username to algorithm to HA1 (see `credentials_in`)."""
        params = self.credentials_in(request)
        if params is None:
            return Verdict(False, reason="missing")
        username = params.get("username", "")
        algorithm = _canonical_algorithm(params.get("algorithm", ""))
        wanted = ("nonce", "response", "uri", "cnonce", "nc")
        if (
            algorithm not in _HASHES
            or params.get("qop", "").lower() != "auth"
            or not all(map(params.get, wanted))
        ):
            return Verdict(False, username, "malformed")
        age = self._age(params["nonce"], now)
        if age is None:
            return Verdict(False, username, "wrong")
        if not _same_uri(params["uri"], request.uri):
            return Verdict(False, username, "uri")
        secret = ((ha1s or {}).get(username) or {}).get(algorithm)
        if secret is None:
            return Verdict(False, username, "unknown-user")
        expected = _response(algorithm, secret, request.method, params)
        if not hmac.compare_digest(expected.encode(), params["response"].lower().encode("utf-8", "replace")):
            return Verdict(False, username, "wrong")
        if age > self.lifetime_s:
            return Verdict(False, username, "stale")
        if not self._count(params["nonce"], params["nc"]):
            return Verdict(False, username, "replay")
        return Verdict(True, username)

    def credentials_in(self, request: Request) -> dict[str, str] | None:
        """The digest parameters meant for our realm, None when there are none: whose HA1 to look up."""
        for name in ("Authorization", "Proxy-Authorization"):
            for value in request.get_all(name):
                params = parse_digest(value)
                if params is not None and params.get("realm") == self.realm:
                    return params
        return None

    def _age(self, nonce: str, now: float) -> float | None:
        """How old one of our nonces is; None for one we did not issue."""
        text, _, signature = nonce.rpartition(".")
        if (
            not text.isascii()
            or not signature.isascii()
            or not hmac.compare_digest(self._sign(text), signature)
        ):
            return None
        return now - int(text.partition(".")[0], 16) / 1000

    def _count(self, nonce: str, text: str) -> bool:
        """Whether this nonce count is new (RFC 7616 section 3.4, replay protection)."""
        try:
            count = int(text, 16) if len(text) <= 8 and text.isalnum() else 0
        except ValueError:
            count = 0
        if count <= 0:
            return False
        highest, seen = self._counts.pop(nonce, (0, 0))
        fresh = True
        if count > highest:
            shift = count - highest
            seen = ((seen << shift) | 1) & ((1 << COUNTS_WINDOW) - 1) if shift < COUNTS_WINDOW else 1
            highest = count
        else:
            bit = 1 << (highest - count)
            fresh = highest - count < COUNTS_WINDOW and not seen & bit
            seen |= bit if highest - count < COUNTS_WINDOW else 0
        self._counts[nonce] = (highest, seen)
        while len(self._counts) > NONCES_MAX_COUNT:
            self._counts.popitem(last=False)
        return fresh


def _same_uri(claimed: str, actual: str) -> bool:
    """Whether the digest's uri names the Request-URI (RFC 7616 section 3.4.6), equivalent forms allowed."""
    if claimed == actual:
        return True
    try:
        return SipUri.parse(claimed).same_target(SipUri.parse(actual))
    except SipParseError:
        return False
