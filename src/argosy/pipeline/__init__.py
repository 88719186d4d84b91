"""The graph of stages: plan, run, resume."""
