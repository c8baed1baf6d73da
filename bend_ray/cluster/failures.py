"""Ray's errors in plain words."""

import traceback

import ray

from bend_ray.errors import ArtifactError, BendError, ResourceError, place, why

RETRIES = 3
"""How often a killed worker, actor or task is started again."""


def bend_error(error: Exception) -> BendError | None:
    """The BendError of ours that Ray's exception was raised for, if it was for one."""
    cause: BaseException | None = error
    while cause is not None:
        # The innermost: Ray's own wrapper is of our class as well, and says the whole traceback.
        inner = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, ray.exceptions.ActorDiedError) and cause.args:  # its constructor's error
            inner = cause.args[0]
        if isinstance(cause, BendError) and not isinstance(cause, ray.exceptions.RayError):
            return cause
        cause = inner if isinstance(inner, BaseException) else None
    return None


def plainly(error: Exception) -> BendError:
    """Ray's exception as one of ours: the BendError inside it, or a sentence that says what failed or what Ray says."""
    if (ours := bend_error(error)) is not None:
        return ours
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return ResourceError(f"a Ray process ran out of memory ({str(error).splitlines()[0]}); use fewer at once")
    if isinstance(error, ray.exceptions.OutOfDiskError):
        return ArtifactError("a node's disk is full; free some space and run the same command again")
    if of_code := _failure_of_code(error):
        return ResourceError(f"a Ray process failed ({last_line(of_code)}{place(str(of_code))}); see --verbose")
    return ResourceError(
        f"Ray gave up after {RETRIES} tries ({type(error).__name__}: {last_line(error)}); see --verbose"
    )


def of_users_code(error: Exception) -> BendError | None:
    """``error``, which a line of the user's code raised, in a sentence; None for any other, and for what may pass."""
    where = place("".join(traceback.format_exception(error)))
    if not where or isinstance(error, OSError | MemoryError):
        return None
    return ResourceError(f"a Ray process failed ({type(error).__name__}: {why(error)}{where}); see --verbose")


def _failure_of_code(error: Exception) -> Exception | None:
    """What code that Ray ran raised, as Ray has it: its text is the traceback. Of several workers that failed, one in
    whose traceback is a line of the user's, for others fail as they wait for it. None where a process just died."""
    failures: list[Exception] = [error, *getattr(error, "worker_failures", {}).values()]
    of_code = [failure for failure in failures if '  File "' in str(failure)]
    return max(of_code, key=lambda failure: bool(place(str(failure))), default=None)


def last_line(error: Exception) -> str:
    """What a long message comes to."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [""])[-1]
