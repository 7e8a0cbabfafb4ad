"""The signed leg token: only the key's holder makes one, and nothing else is read as one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ari_ha.core.ids import Epoch
from ari_ha.wire.token import BadToken, LegToken, sign, verify

KEY = b"one key"
texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)
tokens = st.builds(
    LegToken,
    kind=st.sampled_from(["trunk", "agent", "resume", "dial"]),
    call=texts,
    leg=texts,
    epoch=st.builds(Epoch, st.integers(0, 10**9), st.integers(0, 10**6)).map(str),
    facts=st.dictionaries(texts, st.sampled_from(["ringing", "up", "held"]), max_size=4),
)


@given(tokens)
def test_round_trip(token):
    assert verify(sign(token, KEY), KEY) == token


@given(tokens, st.integers(0, 10_000), st.integers(1, 255))
def test_one_changed_character_is_refused(token, at, change):
    text = sign(token, KEY)
    at %= len(text)
    changed = text[:at] + chr((ord(text[at]) + change) % 128) + text[at + 1 :]
    if changed.strip() == text:
        return
    with pytest.raises(BadToken):
        verify(changed, KEY)


@given(st.text(max_size=200))
def test_any_text(text):
    with pytest.raises(BadToken):
        verify(text, KEY)


@given(tokens)
def test_another_key(token):
    with pytest.raises(BadToken):
        verify(sign(token, b"another"), KEY)


@given(st.integers(0, 400))
def test_a_long_history_makes_no_token_that_is_refused(count):
    ended = {f"a{number}": "agent" for number in range(count)}
    back = verify(sign(LegToken(kind="resume", call="k", leg="c", epoch="1.1", ended=ended), b"key"), b"key")
    assert list(back.ended.items()) == list(ended.items())[count - len(back.ended) :]
    assert len(back.ended) >= min(count, 24)
