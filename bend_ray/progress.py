"""How far long work is: one live line on a terminal, a plain line every few seconds in a log."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

EVERY_S = 5.0
CALLED_S = 0.2
WIDTH = 24

ProgressCallback = Callable[[int, int], None]
"""A function of (done, total), called as work goes on."""


def throttled(callback: Callable[[int, int], object], every: float = CALLED_S) -> Callable[[int, int], None]:
    """``callback`` (done, total) once in ``every`` seconds at most, and when all is done."""
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > every or done == total:
            last = time.monotonic()
            callback(done, total)

    return progress


def counted(number: int, things: str) -> str:
    """``number`` of ``things``, whose plural is given: 1 row, 2 rows."""
    return f"{number} {things.removesuffix('s') if number == 1 else things}"


def say(stage: str, words: str) -> None:
    """A line of ``stage``'s, apart from its progress."""
    print(f"{stage:<9} {words}", flush=True)


class Progress:
    """Progress of one stage's unit of work, with rate and time left; use as a context manager.

    ``already`` units were finished by an earlier run: they count as done, and not for the rate.
    """

    def __init__(self, stage: str, unit: str, total: int, already: int = 0, stream: TextIO | None = None) -> None:
        self.stage, self.unit, self.total, self.already = stage, unit, total, already
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.start = self.shown = time.monotonic()
        self.done = already
        self.first: tuple[float, int] | None = None
        """When work was first seen done, and how much: what starts up before must not count for the rate."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.live:
            self._print("\r\x1b[K", end="")
        if kind is None:
            seconds = time.monotonic() - self.start
            self._print(f"{self.stage:<9} {counted(self.total, self.unit)} in {seconds:.1f} s")

    def update(self, done: int, total: int | None = None) -> None:
        """``done`` of ``total`` units are finished, those of earlier runs included."""
        now = time.monotonic()
        self.done, self.total = done, total or self.total
        if (self.first is None and done > self.already) or (self.first and done < self.first[1]):  # some was lost
            self.first = now, done
        if self.live and now - self.shown > 0.1:
            filled = WIDTH * self.done // max(self.total, 1)
            self._print(f"\r\x1b[K{self.stage:<9} [{'#' * filled}{'.' * (WIDTH - filled)}] {self._words(now)}", end="")
            self.shown = now
        elif not self.live and now - self.shown > EVERY_S:
            self._print(f"{self.stage:<9} {self._words(now)}")
            self.shown = now

    def line(self, text: str) -> None:
        """A line that stays, above the live one."""
        if self.live:
            self._print("\r\x1b[K", end="")
        self._print(f"{self.stage:<9} {text}")

    def _words(self, now: float) -> str:
        since, at = self.first or (now, self.done)
        if self.done == at:
            return f"{self.done}/{self.total} {self.unit}, starting for {now - self.start:.0f} s"
        rate = (self.done - at) / max(now - since, 1e-9)
        return f"{self.done}/{self.total} {self.unit}, {rate:.3g}/s, {(self.total - self.done) / rate:.0f} s left"

    def _print(self, text: str, end: str = "\n") -> None:
        print(text, end=end, file=self.stream, flush=True)
