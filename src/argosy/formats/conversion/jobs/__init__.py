"""What runs in child processes, often in a tool's own environment, where Argosy itself cannot be imported.

A module here is loaded by its path. It imports the standard library, NumPy and its tool; those for this environment
also Argosy. Its functions take and return plain values; arrays go through files.
"""
