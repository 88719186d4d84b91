"""Errors as gRPC tells them: a status code and a message, and the stable code of Argosy in the trailing metadata."""

from typing import Any

from grpc import StatusCode

from argosy.core.errors import (
    ArgosyError,
    Conflict,
    DeadlineExceeded,
    Denied,
    InvalidInput,
    NotFound,
    PluginError,
    Unavailable,
)

# What a class of errors means here; the codes below are more precise. Anything else is INTERNAL.
_OF_CLASS: dict[type[ArgosyError], Any] = {
    InvalidInput: StatusCode.INVALID_ARGUMENT,
    NotFound: StatusCode.NOT_FOUND,
    Conflict: StatusCode.ABORTED,
    Denied: StatusCode.PERMISSION_DENIED,
    Unavailable: StatusCode.UNAVAILABLE,
    DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    PluginError: StatusCode.UNIMPLEMENTED,
}
_OF_CODE = {
    "unauthorized": StatusCode.UNAUTHENTICATED,
    "body_too_large": StatusCode.RESOURCE_EXHAUSTED,
    "answer_too_large": StatusCode.RESOURCE_EXHAUSTED,
    "unknown_method": StatusCode.UNIMPLEMENTED,
}
_MAX_DETAILS = 800
"""Details travel in a header, up to nine bytes a letter, and clients take 8 KiB of those."""


def status_of(error: ArgosyError) -> int:
    """Return the number of an error's gRPC status."""
    found = _OF_CODE.get(error.code)
    if found is None:
        found = next((_OF_CLASS[kind] for kind in type(error).__mro__ if kind in _OF_CLASS), StatusCode.INTERNAL)
    return int(found.value[0])


def details_of(error: ArgosyError) -> str:
    """Return what the client's user reads: the message, and what to do."""
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    return text if len(text) <= _MAX_DETAILS else text[: _MAX_DETAILS - 1] + "…"


def trailers_of(error: ArgosyError) -> tuple[tuple[str, str], ...]:
    """Return the trailing metadata of an error.

    `grpc-retry-pushback-ms` is what clients with a retry policy wait for (gRPC proposal A6).
    """
    found = (("argosy-code", error.code),)
    if "retry_after_s" in error.context:
        return (*found, ("grpc-retry-pushback-ms", str(round(1000 * error.context["retry_after_s"]))))
    return found
