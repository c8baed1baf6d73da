"""A line every few seconds in a log, one live line on a terminal."""

import io

import pytest

from bend_ray.progress import Progress, counted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_says_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 6.0, 7.0, 8.0])
    monkeypatch.setattr("bend_ray.progress.time.monotonic", lambda: next(clock))
    out = io.StringIO()
    with Progress("collect", "chains", 20, already=8, stream=out) as show:
        show.update(9)
        show.update(14)
        show.update(20)
    said = out.getvalue().splitlines()
    assert said == ["collect   14/20 chains, 1/s, 6 s left", "collect   20 chains in 8.0 s"]


def test_log_says_how_long_it_has_been_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 6.0, 7.0, 12.0, 13.0])
    monkeypatch.setattr("bend_ray.progress.time.monotonic", lambda: next(clock))
    out = io.StringIO()
    with Progress("collect", "chains", 20, already=8, stream=out) as show:
        for _ in range(4):
            show.update(8)
    said = out.getvalue().splitlines()[:2]
    assert said == ["collect   8/20 chains, starting for 6 s", "collect   8/20 chains, starting for 12 s"]


def test_terminal_keeps_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr("bend_ray.progress.time.monotonic", lambda: next(clock))
    out = Terminal()
    with Progress("fit", "iterations", 4, stream=out) as show:
        show.update(1)
        show.line("half way")
        show.update(2)
    assert out.getvalue().count("\n") == 2 and "[######..................] 1/4" in out.getvalue()


def test_failure_claims_nothing() -> None:
    out = io.StringIO()
    with pytest.raises(ValueError), Progress("fit", "iterations", 4, stream=out):
        raise ValueError
    assert out.getvalue() == ""


def test_one_of_a_thing_is_no_plural() -> None:
    assert [counted(number, "chains") for number in (0, 1, 2)] == ["0 chains", "1 chain", "2 chains"]
    out = io.StringIO()
    with Progress("sample", "blocks", 1, stream=out):
        pass
    assert out.getvalue().startswith("sample    1 block in ")
