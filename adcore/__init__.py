"""adcore: an in-house ad delivery server."""

__version__ = "0.1.0"
