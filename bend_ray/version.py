"""The version of bend_ray, said once: the package, its metadata and its artifacts read it here."""

__version__ = "0.1.0"
