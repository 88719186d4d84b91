"""Metrics, calibration, gates and the rollout judge. NumPy only."""
