"""How a prediction is explained. Imports nothing heavy."""

from argosy.core.config import Config
from argosy.core.errors import InvalidInput


class ExplainConfig(Config, frozen=True):
    """How one prediction is explained: the method, and what it may cost."""

    method: str = "shapley"
    """A name of the table of explainers. `shapley` asks the model only for answers, so it works for every model."""
    seconds: float = 5.0
    """Time for one explanation. It ends earlier when its values are exact enough; more time makes them more exact."""
    background: int = 64
    """Rows drawn from the given ones to stand for "this feature is unknown". More are more exact and take longer."""
    patch: int = 0
    """Pixels per side of the squares an image is explained by; 0: chosen so that there are at most 64 of them."""
    seed: int = 0
    """Decides which background rows and which orders of features are drawn; 0 or more."""

    def check(self) -> None:
        """Raise InvalidInput for values that can't work."""
        if not 0 < self.seconds <= 3600:
            raise InvalidInput(f"explain seconds is {self.seconds:g}; it must be above 0 and at most 3600")
        if not 1 <= self.background <= 100_000:
            raise InvalidInput(f"explain background is {self.background}; it must be between 1 and 100000 rows")
        if self.patch < 0:
            raise InvalidInput(f"explain patch is {self.patch}; it must be 1 or more pixels, or 0")
        if self.seed < 0:
            raise InvalidInput(f"explain seed is {self.seed}; it must be 0 or more")
