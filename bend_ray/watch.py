"""A thread that looks on while the driver works, and ends the work with an error where that is due."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from bend_ray.errors import BendError


@contextlib.contextmanager
def watching(look: Callable[[], None], every: float) -> Iterator[None]:
    """Call ``look`` every so many seconds while the block runs, and once when it has ended well or badly.

    A BendError of ``look``'s is raised in the place of the block, which is broken off as by Control-C if it still runs
    (in the main thread; elsewhere it is raised when the block ends).
    """
    stop, found = threading.Event(), list[BendError]()
    main = threading.main_thread().ident or 0

    def watch() -> None:
        last = False
        while not last and not found:
            last = stop.wait(every)
            try:
                look()
            except BendError as error:
                found.append(error)
                if not last:
                    signal.pthread_kill(main, signal.SIGINT)

    def end() -> None:
        stop.set()
        interrupted = False
        while watcher.is_alive():
            try:
                watcher.join()
            except KeyboardInterrupt:
                interrupted = True
        if found:
            raise found[0] from None
        if interrupted:
            raise KeyboardInterrupt

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except BaseException:
        end()
        raise
    end()
