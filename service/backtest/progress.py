"""How far a run has come: a bar where someone watches, else a line for every part."""

import time
from collections.abc import Callable
from typing import TextIO

_WIDTH = 30
_REDRAW_S = 0.2


class Progress:
    """Writes to a text stream, which is standard error but for tests."""

    def __init__(
        self, out: TextIO, label: str = "", clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._out = out
        self._label = label
        self._clock_s = clock_s
        self._started_s = clock_s()
        self._drawn_s = -_REDRAW_S
        self._is_watched = out.isatty()
        self._done, self._total = 0, 0

    def advance(self, done: int, total: int, note: str) -> None:
        """So many events of so many are done."""
        self._done, self._total = done, total
        now_s = self._clock_s()
        if not self._is_watched or now_s - self._drawn_s < _REDRAW_S:
            return
        self._drawn_s = now_s
        filled = _WIDTH * done // max(total, 1)
        bar = "#" * filled + "." * (_WIDTH - filled)
        self._out.write(f"\r\x1b[K{self._label}[{bar}] {self._state(now_s)}  {note}")
        self._out.flush()

    def meanwhile(self, note: str) -> None:
        """No more events are done, but something goes on."""
        self.advance(self._done, self._total, note)

    def part(self, note: str) -> None:
        """A part is done: a line that stays, where there is no bar to see it by."""
        if not self._is_watched:
            self.say(f"{self._label}{self._state(self._clock_s())}  {note}")

    def say(self, line: str) -> None:
        """A line that stays."""
        self._out.write(f"\r\x1b[K{line}\n" if self._is_watched else f"{line}\n")
        self._out.flush()

    def end(self) -> None:
        """Leave no bar behind."""
        if self._is_watched:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def _state(self, now_s: float) -> str:
        passed_s = now_s - self._started_s
        share = self._done / max(self._total, 1)
        left = _clock(passed_s / share - passed_s) if share else "?"
        return f"{share:4.0%}  {_clock(passed_s)} passed, {left} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
