"""How processes log: one JSON line per change of state, the event a constant name, everything variable a field."""

import logging
import sys
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import structlog


def _structlog() -> Any:
    """Import structlog without rich, which it would load for coloured consoles that no process of ours writes to.

    That is 0.09 of the 0.15 CPU seconds of the import, paid by every gateway and replica.
    """
    is_absent = "rich" not in sys.modules
    if is_absent:
        sys.modules["rich"] = None  # type: ignore[assignment] # the import system's own way to say: not here
    try:
        import structlog
    finally:
        if is_absent:
            del sys.modules["rich"]
    return structlog


class _Logger:
    """structlog's logger, imported when something is logged: most commands of the CLI never do."""

    def __init__(self) -> None:
        self._inside: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._inside is None:
            self._inside = _structlog().get_logger()
        return getattr(self._inside, name)


def get_logger() -> "structlog.stdlib.BoundLogger":
    """Return a logger; it writes as `configure_logs` says, also when that is called later."""
    return cast("structlog.stdlib.BoundLogger", _Logger())


def configure_logs(level: str = "info", **bound: Any) -> None:
    """Send this process's structured logs to standard error as JSON lines, with `bound` on each of them."""
    structlog = _structlog()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Without the values of variables: what callers send must not get into logs by way of an error.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
