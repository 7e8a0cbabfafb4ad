"""Why did this happen: a bounded ring of notes, replayed by ``ari-ha explain``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from ari_ha.core.machine import Note

STORY_LINES_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Line:
    """One note and when it was written (wall clock, UTC seconds)."""

    at_utc_s: float
    subject: str
    text: str
    cause: str
    facts: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, object]:
        """The line as JSON values."""
        return {
            **dict(self.facts),
            "at": self.at_utc_s,
            "subject": self.subject,
            "text": self.text,
            "cause": self.cause,
        }


class Story:
    """Keeps the newest `STORY_LINES_MAX` lines in memory; never blocks on disk."""

    def __init__(self, lines_max: int = STORY_LINES_MAX) -> None:
        self._lines: deque[Line] = deque(maxlen=lines_max)

    def add(self, note: Note, at_utc_s: float) -> Line:
        """Appends a note and returns the line made of it."""
        line = Line(at_utc_s, note.subject, note.text, note.cause, note.facts)
        self._lines.append(line)
        return line

    def about(self, subject: str) -> Iterator[Line]:
        """Lines whose subject is ``subject``, lies under it or ends with it (a bare id), or
        that mention it."""
        for line in self._lines:
            if (
                line.subject == subject
                or line.subject.startswith(subject + "/")
                or line.subject.endswith("/" + subject)
                or any(value == subject for _, value in line.facts)
            ):
                yield line

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines)
