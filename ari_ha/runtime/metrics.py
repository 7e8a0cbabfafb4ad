"""Counters, gauges and histograms of one process, for Prometheus.

A name is used as it is first used: its labels are fixed then. Label values are
bounded: beyond `LABEL_SETS_MAX` sets of a metric, further ones count as "other",
so that no call id in a label can fill the memory of whoever scrapes us.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

PREFIX = "ari_ha_"
LABEL_SETS_MAX = 200
LABEL_VALUE_MAX_CHARS = 100
OTHER = "other"
SECONDS_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

Labels = tuple[tuple[str, str], ...]
_Metric = Counter | Gauge | Histogram


class Metrics:
    """The metrics of this process. ``constant`` labels (cluster, node) are on all."""

    def __init__(self, constant: Mapping[str, str] | None = None) -> None:
        self.registry = CollectorRegistry(target_info=dict(constant) if constant else None)
        ProcessCollector(registry=self.registry)
        self._texts: dict[str, str] = {}
        self._metrics: dict[str, tuple[_Metric, tuple[str, ...]]] = {}
        self._children: dict[str, dict[tuple[str, ...], Any]] = {}

    def describe(self, texts: Mapping[str, str]) -> None:
        """Help texts by name (without prefix), for metrics not used yet."""
        self._texts.update(texts)

    def count(self, name: str, by: float = 1, labels: Labels = ()) -> None:
        """Adds to a counter; ``ari_ha_<name>_total`` outside."""
        self._child(Counter, name, labels).inc(by)

    def gauge(self, name: str, value: float, labels: Labels = ()) -> None:
        """Sets a gauge."""
        self._child(Gauge, name, labels).set(value)

    def observe(self, name: str, seconds: float, labels: Labels = ()) -> None:
        """Adds one duration to a histogram; ``name`` ends in ``_seconds``."""
        self._child(Histogram, name, labels).observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _child(self, kind: type[_Metric], name: str, labels: Labels) -> Any:
        entry = self._metrics.get(name)
        if entry is None:
            entry = self._metrics[name] = self._new(kind, name, labels)
            self._children[name] = {}
        metric, names = entry
        if type(metric) is not kind:
            raise ValueError(f"metric {name!r} is a {type(metric).__name__}, not a {kind.__name__}")
        if not names:
            return metric
        given = dict(labels)
        values = tuple(str(given.get(label, ""))[:LABEL_VALUE_MAX_CHARS] for label in names)
        children = self._children[name]
        child = children.get(values)
        if child is None:
            if len(children) >= LABEL_SETS_MAX:
                values = (OTHER,) * len(names)
            child = children[values] = metric.labels(*values)
        return child

    def _new(self, kind: type[_Metric], name: str, labels: Labels) -> tuple[_Metric, tuple[str, ...]]:
        names = tuple(label for label, _ in labels)
        text = self._texts.get(name) or name.replace("_", " ")
        if kind is Histogram:
            return Histogram(
                PREFIX + name, text, names, registry=self.registry, buckets=SECONDS_BUCKETS
            ), names
        return kind(PREFIX + name, text, names, registry=self.registry), names
