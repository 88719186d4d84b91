"""Desired state, the controller that makes it true, and rollouts."""
