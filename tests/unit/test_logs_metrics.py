"""Logs and metrics of a process."""

from __future__ import annotations

import io
import json
import logging

import pytest

from ari_ha.runtime.logs import Logs, covered, tell
from ari_ha.runtime.metrics import LABEL_SETS_MAX, Metrics


@pytest.fixture
def log():
    stream = io.StringIO()
    logs = Logs("node", stream)
    logger = logging.getLogger("test.ari_ha")
    logger.addHandler(logs.handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False

    def lines() -> list[dict]:
        logs.close()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    yield logger, logs, lines
    logger.removeHandler(logs.handler)


def test_a_line_is_an_object_with_its_facts(log):
    logger, _, lines = log
    tell(logger, "effect", "ari_call", cause="c1", operation="channels.answer", password="hunter22")
    (line,) = lines()
    assert (line["process"], line["level"], line["kind"], line["what"]) == (
        "node",
        "info",
        "effect",
        "ari_call",
    )
    assert line["operation"] == "channels.answer" and line["password"] == "********"


def test_a_message_that_is_an_object_is_not_wrapped(log):
    logger, _, lines = log
    logger.info("%s", json.dumps({"kind": "note", "subject": "calls/k1"}))
    logger.info("plain %s", "text")
    first, second = lines()
    assert (first["kind"], first["subject"]) == ("note", "calls/k1")
    assert second["what"] == "plain text"


def test_a_line_is_written_whatever_its_facts_are(log):
    logger, _, lines = log
    tell(logger, "event", "odd", half="\ud800", thing=ValueError("no"), number=2**70)
    (line,) = lines()
    assert line["half"] == "\ud800" and line["thing"] == "no" and str(line["number"]) == str(2**70)


def test_secrets_told_are_covered_everywhere(log):
    logger, logs, lines = log
    logs.hide("s3cret-value", "")
    logger.error("connecting with s3cret-value failed")
    assert lines()[0]["what"] == "connecting with ******** failed"


def test_exceptions_have_their_traceback(log):
    logger, _, lines = log
    try:
        raise KeyError("x")
    except KeyError:
        logger.exception("fault")
    assert "KeyError" in lines()[0]["traceback"]


def test_a_log_nobody_reads_drops_lines_and_counts_them(log):
    logger, logs, _lines = log
    logs.close()
    for number in range(10_050):
        logger.info("line %d", number)
    assert logs.dropped == 50


def test_covered_looks_into_collections():
    value = covered({"a": [{"token": "x", "key": "/ari-ha/k"}], "long": "x" * 5000})
    assert value["a"] == [{"token": "********", "key": "/ari-ha/k"}]
    assert len(value["long"]) < 4100


def text(metrics: Metrics) -> str:
    return metrics.render()[0].decode()


def test_counts_gauges_and_durations():
    metrics = Metrics()
    metrics.describe({"moves": "Calls moved."})
    metrics.count("moves", 2, (("why", "kill"),))
    metrics.count("moves", labels=(("why", "kill"),))
    metrics.gauge("calls", 7)
    metrics.observe("answer_seconds", 0.03)
    shown = text(metrics)
    assert "# HELP ari_ha_moves_total Calls moved." in shown
    assert 'ari_ha_moves_total{why="kill"} 3.0' in shown
    assert "ari_ha_calls 7.0" in shown
    assert 'ari_ha_answer_seconds_bucket{le="0.05"} 1.0' in shown


def test_label_sets_are_bounded():
    metrics = Metrics()
    for number in range(LABEL_SETS_MAX + 50):
        metrics.count("wrong", 1, (("call", str(number)),))
    assert text(metrics).count("ari_ha_wrong_total{") == LABEL_SETS_MAX + 1
    assert 'ari_ha_wrong_total{call="other"} 50.0' in text(metrics)


def test_labels_are_those_of_the_first_use():
    metrics = Metrics()
    metrics.count("x", 1, (("a", "1"),))
    metrics.count("x", 1, (("b", "2"),))
    assert 'ari_ha_x_total{a=""} 1.0' in text(metrics)


def test_one_name_is_one_kind():
    metrics = Metrics()
    metrics.count("x")
    with pytest.raises(ValueError, match="is a Counter"):
        metrics.gauge("x", 1)
