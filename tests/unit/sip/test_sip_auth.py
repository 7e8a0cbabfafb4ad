"""Digest authentication: both sides against each other, and against the standard's own example."""

from __future__ import annotations

import pytest

from ari_ha.sip import auth
from ari_ha.sip.auth import Credentials, DigestAuthority, authorization, ha1
from ari_ha.sip.message import Request

STORED = {"alice": {name: ha1(name, "alice", "lab", "secret") for name in auth.ALGORITHMS}}


def request(value: str | None, uri: str = "sip:lab") -> Request:
    headers = [] if value is None else [("Authorization", value)]
    return Request("REGISTER", uri, headers)


@pytest.mark.parametrize("algorithm", auth.ALGORITHMS)
def test_what_one_side_computes_the_other_accepts(algorithm: str) -> None:
    authority = DigestAuthority("lab", b"key")
    challenge = authority.challenge(10.0, "s", algorithms=[algorithm])
    for who in (Credentials("alice", "secret"), Credentials("alice", ha1=STORED["alice"])):
        value = authorization(
            who, authority.challenge(10.0, who.password, algorithms=[algorithm]), "REGISTER", "sip:lab", "c"
        )
        assert value is not None and algorithm in value
        assert authority.verify(request(value), STORED, 11.0).ok
    wrong = authorization(Credentials("alice", "no"), challenge, "REGISTER", "sip:lab", "c")
    assert authority.verify(request(wrong), STORED, 11.0).reason == "wrong"


def test_the_example_of_rfc_7616_section_3_9_1() -> None:
    for algorithm, digest in (
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ):
        challenge = (
            f'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={algorithm}, '
            'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", '
            'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
        )
        cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
        who = Credentials("Mufasa", "Circle of Life")
        value = authorization(who, [challenge], "GET", "/dir/index.html", cnonce)
        assert value is not None and f'response="{digest}"' in value and "opaque=" in value


def test_the_stronger_algorithm_is_taken() -> None:
    challenges = DigestAuthority("lab", b"k").challenge(0.0, "s")
    value = authorization(Credentials("a", "b"), challenges[::-1], "REGISTER", "sip:lab", "c")
    assert value is not None and "algorithm=SHA-256" in value
    only_md5 = Credentials("a", ha1={"MD5": "0" * 32})
    assert "algorithm=MD5" in (authorization(only_md5, challenges, "REGISTER", "sip:lab", "c") or "")
    for useless in (
        ['Digest realm="x", nonce="n", algorithm=SHA-512'],
        ["Basic x"],
        ['Digest realm="x"'],
        [],
    ):
        assert authorization(Credentials("a", "b"), useless, "REGISTER", "sip:lab", "c") is None


def test_a_challenge_of_rfc_2069_is_answered() -> None:
    value = authorization(Credentials("a", "b"), ['Digest realm="x", nonce="n"'], "REGISTER", "sip:x", "c")
    assert value is not None and "qop" not in value


def test_stale_replayed_and_foreign() -> None:
    authority = DigestAuthority("lab", b"key", lifetime_s=60)

    def answer(nc: int, at: float = 0.0) -> Request:
        challenges = authority.challenge(at, "s")
        value = authorization(Credentials("alice", "secret"), challenges, "REGISTER", "sip:lab", "c", nc)
        return request(value)

    assert authority.verify(answer(1), STORED, 1.0).ok
    assert authority.verify(answer(1), STORED, 1.0).reason == "replay"
    assert authority.verify(answer(3), STORED, 1.0).ok and authority.verify(answer(2), STORED, 1.0).ok
    assert authority.verify(answer(2), STORED, 1.0).reason == "replay"
    assert authority.verify(answer(900), STORED, 1.0).ok
    assert authority.verify(answer(5), STORED, 1.0).reason == "replay", "too far behind the window"
    late = authority.verify(answer(9, 0.0), STORED, 61.0)
    assert late.stale and "stale=true" in authority.challenge(61.0, "t", stale=True)[0]
    assert DigestAuthority("lab", b"other").verify(answer(7), STORED, 1.0).reason == "wrong"
    assert DigestAuthority("lab", b"key").verify(answer(7), STORED, 1.0).ok, (
        "any process with the secret verifies"
    )
    assert authority.verify(answer(8), {}, 1.0).reason == "unknown-user"
    moved = answer(8)
    moved.uri = "sip:elsewhere"
    assert authority.verify(moved, STORED, 1.0).reason == "uri"


@pytest.mark.parametrize(
    "value",
    [
        None,
        "Basic abc",
        'Digest realm="other"',
        "Digest",
        'Digest realm="lab", username="alice"',
        'Digest realm="lab", '
        'username="alice", nonce="é.x.y", uri="sip:lab", response="é", qop=auth, nc=zz, cnonce="c"',
    ],
)
def test_nonsense_is_refused(value: str | None) -> None:
    verdict = DigestAuthority("lab", b"key").verify(request(value), STORED, 1.0)
    assert not verdict.ok and verdict.reason in ("missing", "malformed", "wrong")


def test_the_window_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "NONCES_MAX_COUNT", 5)
    authority = DigestAuthority("lab", b"key")
    for number in range(20):
        value = authorization(
            Credentials("alice", "secret"), authority.challenge(0.0, str(number)), "REGISTER", "sip:lab", "c"
        )
        assert authority.verify(request(value), STORED, 1.0).ok
    assert len(authority._counts) == 5
