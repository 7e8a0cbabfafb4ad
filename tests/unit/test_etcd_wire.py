"""Codecs of etcd's API and the meaning of its errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ari_ha.adapters.etcd import EtcdSettings
from ari_ha.core.ports.store import Compare, Delete, KeyValue, Put, StoreTxn, TxnResult
from ari_ha.wire import etcd as wire
from ari_ha.wire.etcd import MAYBE_DONE, NOT_DONE, Trouble
from ari_ha.wire.etcd_proto import messages as pb

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("status", "detail", "trouble"),
    [
        ("UNAVAILABLE", "etcdserver: no leader", Trouble.NO_LEADER),
        ("UNAVAILABLE", "etcdserver: leader changed", Trouble.LOST),
        ("UNAVAILABLE", "etcdserver: request timed out, waiting too long", Trouble.TIMED_OUT),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
         "Failed to connect to remote host: Connection refused", Trouble.REFUSED_CONNECTION),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: No route to host", Trouble.NOT_SENT),
        ("UNAVAILABLE", "Socket closed", Trouble.LOST),
        ("UNKNOWN", "what is this", Trouble.LOST),
        ("CANCELLED", "", Trouble.LOST),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Trouble.TIMED_OUT),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", Trouble.NO_SPACE),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", Trouble.BUSY),
        ("NOT_FOUND", "etcdserver: requested lease not found", Trouble.NO_LEASE),
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted", Trouble.COMPACTED),
        ("UNAUTHENTICATED", "etcdserver: invalid auth token", Trouble.TOKEN),
        ("INVALID_ARGUMENT", "etcdserver: user name is empty", Trouble.TOKEN),
        ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request", Trouble.REFUSED),
        ("PERMISSION_DENIED", "etcdserver: permission denied", Trouble.REFUSED),
    ],
)  # fmt: skip
def test_what_an_error_means(status, detail, trouble):
    assert wire.failure(status, detail).trouble is trouble


def test_in_doubt_it_may_have_been_done():
    assert not NOT_DONE & MAYBE_DONE
    for status in ("UNKNOWN", "INTERNAL", "ABORTED", "DATA_LOSS", "CANCELLED", "UNAVAILABLE"):
        assert wire.failure(status, "").trouble in MAYBE_DONE


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"/a/", b"/a0"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0"), (b"a", b"b")]
)
def test_the_end_of_a_prefix(prefix, end):
    assert wire.prefix_end(prefix) == end


def test_a_transaction_on_the_wire():
    txn = StoreTxn(
        compares=(Compare("/a", 5), Compare("/b", 0, "!="), Compare("/a", 9, "<")),
        puts=(Put("/a", b"1"), Put("/l", b"2", leased=True)),
        deletes=(Delete("/c"), Delete("/d/", prefix=True)),
    )
    request = pb.TxnRequest.FromString(wire.txn_request(txn, 77).SerializeToString())
    assert [(c.key, c.mod_revision, c.result, c.target) for c in request.compare] == [
        (b"/a", 5, pb.Compare.EQUAL, pb.Compare.MOD),
        (b"/b", 0, pb.Compare.NOT_EQUAL, pb.Compare.MOD),
        (b"/a", 9, pb.Compare.LESS, pb.Compare.MOD),
    ]
    assert [op.request_put.lease for op in request.success[:2]] == [0, 77]
    deletes = [op.request_delete_range for op in request.success[2:]]
    assert [(d.key, d.range_end) for d in deletes] == [(b"/c", b""), (b"/d/", b"/d0")]
    assert [op.request_range.key for op in request.failure] == [b"/a", b"/b"]


def test_the_compared_keys_of_a_failed_transaction():
    kv = pb.KeyValue(key=b"/a", value=b"v", mod_revision=7, create_revision=3, lease=9)
    answer = pb.TxnResponse(
        header=pb.ResponseHeader(revision=8),
        responses=[
            pb.ResponseOp(response_range=pb.RangeResponse(kvs=[kv])),
            pb.ResponseOp(response_range=pb.RangeResponse()),
        ],
    )
    assert wire.txn_result(answer) == TxnResult(False, 8, (KeyValue("/a", b"v", 7, 3, 9),))


def test_keys_that_are_not_text_keep_their_bytes():
    kv = wire.key_value(pb.KeyValue(key=b"/\xff\xfe"))
    assert wire.key_bytes(kv.key) == b"/\xff\xfe"


@pytest.mark.parametrize(
    ("version", "sound"),
    [
        *(("3.4.25", True), ("3.5.30", True), ("3.6.0", True), ("3.6.0-rc.1", True), ("4.0.0", True)),
        *(("3.3.99", False), ("3.4.24", False), ("3.5.7", False), ("", False), ("weird", False)),
    ],
)
def test_which_versions_tell_progress_in_order(version, sound):
    assert wire.progress_is_sound(version) is sound


def test_settings_take_urls():
    settings = EtcdSettings(("https://a:2379/", "b:2379"), user="u", password="p")
    assert settings.targets() == ("a:2379", "b:2379") and settings.login() == ("u", "p")
    assert EtcdSettings().login() is None


def test_the_committed_messages_are_those_of_the_proto_files():
    pytest.importorskip("grpc_tools")
    run = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "generate-etcd-proto"), "--check"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
