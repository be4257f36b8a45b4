"""The generic rung: what of a file lies, somewhere, in bytes that are stored already."""

from rehydrator.delta.pages import PageIndex

__all__ = ["PageIndex"]
