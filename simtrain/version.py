"""The version, for results and files that name it."""

__version__ = "0.1.0"
