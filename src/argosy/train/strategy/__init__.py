"""How the ranks of a training work together: one Protocol, and the table of its implementations."""

from argosy.train.strategy.contract import STRATEGIES, Strategy

__all__ = ["STRATEGIES", "Strategy"]
