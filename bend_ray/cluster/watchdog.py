"""A thread that checks on the driver while it works, and ends the work with an error where that is due."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNAL = signal.SIGUSR2
"""What wakes the main thread: Control-C's own signal is ignored by what a shell has put in the background."""


@contextlib.contextmanager
def watchdog(check: Callable[[], None], every: float) -> Iterator[None]:
    """Call ``check`` every so many seconds while the block runs, and once when it has ended well or badly.

    An error of ``check``'s is raised in the place of the block, which is broken off as by Control-C if it still runs
    (in the main thread; elsewhere the error is raised when the block ends).
    """
    stop, ended, errors = threading.Event(), threading.Event(), list[Exception]()
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(SIGNAL, interrupt) if main else None

    def watch() -> None:
        last = False
        try:
            while not last and not errors:
                last = stop.wait(every)
                try:
                    check()
                except Exception as error:
                    errors.append(error)
                    if main and not last:
                        signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
        finally:
            ended.set()

    def end() -> None:
        stop.set()
        interrupted = False
        while not ended.is_set():  # join would take an interrupted wait for the thread's end
            try:
                ended.wait()
            except KeyboardInterrupt:
                interrupted = True
        if main:
            signal.signal(SIGNAL, before)
        if errors:
            raise errors[0] from None
        if interrupted:
            raise KeyboardInterrupt

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except BaseException:
        end()
        raise
    end()


def interrupt(number: int, frame: Any) -> None:
    """A handler of signals that does as Control-C does."""
    raise KeyboardInterrupt
