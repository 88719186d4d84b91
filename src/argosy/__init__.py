"""Argosy takes a large model from data to a running, watched, reversible service, from one file."""

__version__ = "0.1.0"
