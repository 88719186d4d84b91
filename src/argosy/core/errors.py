"""The one tree of errors. A class says what the caller can do, not where it broke.

ArgosyError
├── InvalidInput        what was given is wrong; give something else
├── NotFound            the named thing does not exist
├── Conflict            somebody else was first; read again and retry
├── Denied              not allowed for this key or role
├── Unavailable         retry later (``retry_after_s``)
├── DeadlineExceeded    the time given was not enough
├── IntegrityError      a digest or signature does not match; never retried
├── PluginError         an optional part is missing or broken; names the extra to install
└── Internal            a fault of Argosy's own
"""

from typing import Any


class ArgosyError(Exception):
    """What every error of Argosy has: a message, a stable code, a hint that says what to do, and context.

    `message` says what was asked and what was found; `hint` says what to do next; `context` holds the same facts
    as values, for `--json` and for logs.
    """

    code = "error"
    retryable = False
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", code: str = "", **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or type(self).code
        self.context = context

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with the message alone and lose hint, code and context.
        return _rebuild, (type(self), self.message, self.hint, self.code, self.context)

    def as_dict(self) -> dict[str, Any]:
        """Return the error as plain values, the form of `--json` and of HTTP answers."""
        found: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.hint:
            found["hint"] = self.hint
        if self.context:
            found["context"] = self.context
        return found


class InvalidInput(ArgosyError):
    """What was given is wrong; the same call will fail again."""

    code = "invalid_input"
    exit_code = 2


class Refused(InvalidInput):
    """A version's own preparation or code can't take an input: the caller's mistake.

    Code of custom models raises it (`argosy.Refused("the text is empty")`); its message goes to the caller.
    """

    code = "input_refused"


class NotFound(ArgosyError):
    """The named thing does not exist."""

    code = "not_found"
    exit_code = 3


class Conflict(ArgosyError):
    """The state has moved on since it was read; read again and decide again."""

    code = "conflict"
    exit_code = 4


class Denied(ArgosyError):
    """The caller may not do this."""

    code = "denied"
    exit_code = 5


class Unavailable(ArgosyError):
    """Not now; the same call may succeed after `retry_after_s` seconds."""

    code = "unavailable"
    retryable = True
    exit_code = 6

    def __init__(
        self, message: str, *, hint: str = "", code: str = "", retry_after_s: float = 1.0, **context: Any
    ) -> None:
        super().__init__(message, hint=hint, code=code, retry_after_s=retry_after_s, **context)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ArgosyError):
    """The time that was given is over."""

    code = "deadline_exceeded"
    retryable = True
    exit_code = 7


class IntegrityError(ArgosyError):
    """Bytes are not what was signed or named by digest."""

    code = "integrity"
    exit_code = 8


class PluginError(ArgosyError):
    """An optional part is not installed or does not fit."""

    code = "plugin"
    exit_code = 9


class Internal(ArgosyError):
    """A fault of Argosy's own; please report it."""

    code = "internal"
    exit_code = 70


def _rebuild(kind: type[ArgosyError], message: str, hint: str, code: str, context: dict[str, Any]) -> ArgosyError:
    return kind(message, hint=hint, code=code, **context)


def from_dict(found: dict[str, Any]) -> ArgosyError:
    """Rebuild an error that crossed a process border as plain values."""
    code = str(found.get("code", "internal"))
    kinds = {kind.code: kind for kind in ArgosyError.__subclasses__()}
    kind = kinds.get(str(found.get("kind", code)), Internal)
    context = dict(found.get("context", {}))
    return kind(str(found.get("message", "")), hint=str(found.get("hint", "")), code=code, **context)


def to_dict(error: ArgosyError) -> dict[str, Any]:
    """Return what `from_dict` needs to rebuild `error` with its class, or the nearest one of the tree above."""
    kind = next((base for base in type(error).__mro__ if base in ArgosyError.__subclasses__()), Internal)
    return {**error.as_dict(), "kind": kind.code}
