"""The version of edgelm, in its one place."""

__version__ = "0.1.0"
