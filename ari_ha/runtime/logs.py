"""Logs: one JSON object per line on stderr; an event, a decision or an effect.

Programs read fields, never sentences. Values of keys that sound secret are
covered, and so is every secret told to `Logs.hide`, wherever it appears. Lines
are written by a thread of their own: when nobody reads stderr they are dropped
and counted, because a process with calls never waits for its log.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import re
import sys
from typing import Any, TextIO

import msgspec

LINES_MAX = 10_000
VALUE_MAX_CHARS = 4_000
SECRET_MIN_CHARS = 6
COVERED = "********"
SECRET_KEY = re.compile(r"passw|secret|token|authorization|ha1|crypto|private_key|header_key", re.IGNORECASE)


def setup(process: str, level: str = "info", stream: TextIO | None = None) -> Logs:
    """Sends the log of this process to ``stream`` (stderr) as JSON lines."""
    logs = Logs(process, stream or sys.stderr)
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(logs.handler)
    root.setLevel(level.upper())
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    # What no line of ours says is not looked up for each of them (Python's logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # type: ignore[attr-defined]
    return logs


def tell(log: logging.Logger, kind: str, what: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """One line: ``kind`` is event, decision, effect or fault; ``what`` a fixed word."""
    if log.isEnabledFor(level):
        log.log(level, what, extra={"facts": {"kind": kind, "what": what, **facts}})


class Logs:
    """Where the lines of this process go."""

    def __init__(self, process: str, stream: TextIO) -> None:
        self._queue: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        self._formatter = _JsonFormatter(process)
        self.handler = _DroppingHandler(self._queue)
        sink = logging.StreamHandler(stream)
        sink.setFormatter(self._formatter)
        self._listener = logging.handlers.QueueListener(self._queue, sink)
        self._listener.start()

    @property
    def dropped(self) -> int:
        """Lines nobody took."""
        return self.handler.dropped

    def hide(self, *secrets: str) -> None:
        """Covers these values wherever they appear from now on."""
        self._formatter.secrets += tuple(text for text in secrets if len(text) >= SECRET_MIN_CHARS)

    def close(self) -> None:
        """Writes what is waiting and stops."""
        logging.getLogger().removeHandler(self.handler)
        self._listener.stop()


class _DroppingHandler(logging.handlers.QueueHandler):
    dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record.message = record.getMessage()
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.queue.qsize() < LINES_MAX:
            self.queue.put_nowait(record)
        else:
            self.dropped += 1


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process
        self.secrets: tuple[str, ...] = ()

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": round(record.created, 6),
            "level": record.levelname.lower(),
            "process": self._process,
            "log": record.name,
            **covered(_facts(record)),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            text = msgspec.json.encode(line, enc_hook=str).decode()
        except UnicodeEncodeError:  # half a surrogate pair: JSON can escape it, UTF-8 has no bytes for it
            text = json.dumps(line, default=str)
        for secret in self.secrets:
            text = text.replace(secret, COVERED)
        return text


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    """The facts given as such, or a message that is itself a JSON object."""
    facts = getattr(record, "facts", None)
    if isinstance(facts, dict):
        return facts
    if record.message.startswith("{"):
        try:
            value = json.loads(record.message)
        except json.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            return value
    return {"kind": "event", "what": record.message[:VALUE_MAX_CHARS]}


def covered(value: Any, key: str = "") -> Any:
    """``value`` without secrets and with long texts cut."""
    if isinstance(value, dict):
        return {str(name): covered(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [covered(item, key) for item in value]
    if key and SECRET_KEY.search(key) and value not in (None, "", False):
        return COVERED
    if isinstance(value, str) and len(value) > VALUE_MAX_CHARS:
        return value[:VALUE_MAX_CHARS] + "..."
    return value
