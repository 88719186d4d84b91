"""Signing, keys, and what is trusted."""
