"""Blobs, the log, versions and their history: one tamper-evident structure on an object store."""
