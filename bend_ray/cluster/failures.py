"""Ray's errors in plain words."""

import ray

from bend_ray.errors import ArtifactError, BendError, ResourceError

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
    """Ray's exception as one of ours: the BendError inside it, or a sentence that says what Ray said."""
    if (ours := bend_error(error)) is not None:
        return ours
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return ResourceError(f"a Ray process ran out of memory ({str(error).splitlines()[0]}); use fewer at once")
    if isinstance(error, ray.exceptions.OutOfDiskError):
        return ArtifactError("a node's disk is full; free some space and run the same command again")
    return ResourceError(
        f"Ray gave up after {RETRIES} tries ({type(error).__name__}: {last_line(error)}); see --verbose"
    )


def last_line(error: Exception) -> str:
    """What a long message comes to."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [""])[-1]
