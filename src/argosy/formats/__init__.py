"""One module per model format: load as a runner, export, compare."""
