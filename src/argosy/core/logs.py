"""How processes log: one JSON line per change of state, the event a constant name, everything variable a field."""

import logging
import sys
from typing import Any


def configure_logs(level: str = "info", **bound: Any) -> None:
    """Send this process's structured logs to standard error as JSON lines, with `bound` on each of them."""
    import structlog

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
