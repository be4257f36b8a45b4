"""Rehydrator: a whole operating system release in one signed container image."""

__version__ = "0.1.0"
