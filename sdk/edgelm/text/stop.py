"""StopMatcher: ends a growing text before the first of some stop strings."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Cut a text that arrives in pieces before the stop string that is complete first.

    What is shown never depends on where the pieces were cut. Of two stops that are complete with the same character,
    the longer one counts.

    found: the stop string that was hit, None as long as none was.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._first_characters = frozenset(stop[0] for stop in self._stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, bool]:
        """Take a piece; return what can be shown now, and whether a stop was hit.

        The longest tail that could be the beginning of a stop is held back. may_stop: whether a stop that is complete
        with this piece counts; one that does not stays text for good.
        """
        if not self._stops:
            return text, False
        if self.found is not None:
            return "", True
        held, text = len(self._held), self._held + text
        hits = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop, max(0, held - len(stop) + 1))) >= 0
        ]
        if hits and may_stop:
            _, start, self.found = min(hits)
            self._held = ""
            return text[:start], True
        tail = self._tail_start(text)
        self._held = text[tail:]
        return text[:tail], False

    def _tail_start(self, text: str) -> int:
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_characters:
                tail = text[start:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return start
        return len(text)

    def flush(self) -> str:
        """Return what was held back, as the text ended without a stop."""
        held, self._held = self._held, ""
        return held
