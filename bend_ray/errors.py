"""Errors for people: each message says what is wrong, where (a key or a file), and what to do about it.

Every class takes exactly one string, so that it survives pickling between Ray processes, and is also the standard
library's nearest type, so that callers who know nothing of us can still catch it.
"""


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
