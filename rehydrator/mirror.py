"""Mirroring the files that a stream document names."""
