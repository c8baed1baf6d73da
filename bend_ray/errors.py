"""Errors for people: each message says what is wrong, where (a key or a file), and what to do about it.

Every class takes exactly one string, so that it survives pickling between Ray processes, and is also the standard
library's nearest type, so that callers who know nothing of us can still catch it.
"""

import errno
import re
import sysconfig
from pathlib import Path

NOT_ITS_FAULT = {
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the machine's limit on open files (sysctl fs.file-max)",
    errno.ENOMEM: "free memory",
    errno.EIO: "check the disk",
}
"""Errors that say nothing of a file's content, and what mends each."""


class BendError(Exception):
    """Anything a user can cause and mend; the command line prints it as one line and exits with 2."""


class ConfigError(BendError, ValueError):
    """A configuration key is unknown, missing, or out of range."""


class DataError(BendError, ValueError):
    """Images or labels that cannot be used: missing, broken, empty, or out of range."""


class ModelError(BendError, ValueError):
    """A classifier, its weights, or the chosen subset of its parameters does not fit."""


class TrainingError(BendError, ArithmeticError):
    """Training left the finite numbers or otherwise failed for a reason the user can change."""


class ArtifactError(BendError, OSError):
    """Something on disk is missing, truncated, altered, or made by another configuration or version."""


class MissingError(ArtifactError, FileNotFoundError):
    """A file is not there."""


class EndpointError(BendError, ConnectionError):
    """A served ensemble cannot be reached, is too busy, or refuses a request."""


class ResourceError(BendError, RuntimeError):
    """The cluster lacks what the configuration asks for."""


def broken(where: str, what: str, error: Exception) -> ArtifactError:
    """That the file ``where`` is not a whole ``what``; or that it cannot be read now, no reason to delete it."""
    if isinstance(error, OSError) and (mend := NOT_ITS_FAULT.get(error.errno or 0)):
        return ArtifactError(f"{where}: cannot be read ({why(error)}); {mend} and run the same command again")
    return ArtifactError(f"{where}: is not a whole {what} ({why(error)}); delete it and run the same command again")


def why(error: Exception) -> str:
    """What an error says, in one line and without passwords."""
    return _unlocked(" ".join(str(error).split()))[:300]


def place(trace: str) -> str:
    """ ", at FILE, line N" of the line in a printed traceback where the user's code stands that we, or a library, ran.
    Empty where none does."""
    ours, python = str(Path(__file__).parent), sysconfig.get_path("stdlib")
    for file, line in reversed(re.findall(r'File "(.+)", line (\d+)', trace)):
        if file.startswith(ours):  # what is above called us
            return ""
        library = re.search(r"/(site|dist)-packages/(torch|ray)/", file)
        if not (library or file.startswith("<") or (file.startswith(python) and "-packages" not in file)):
            return f", at {file}, line {line}"
    return ""


def shown(where: str) -> str:
    """A path or URI for people, without passwords and options."""
    return _unlocked(where.partition("?")[0]) if "://" in where else where


def _unlocked(text: str) -> str:
    """The text without what stands for passwords in URIs."""
    return re.sub(r"://([^@]*:[^@]*|[^/@]*)@", "://", text)
