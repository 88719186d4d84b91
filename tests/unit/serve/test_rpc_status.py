"""What each kind of error is over gRPC."""

import grpc
import pytest

from argosy.core import errors
from argosy.serve.rpc.status import details_of, status_of, trailers_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidInput("no"), "INVALID_ARGUMENT"),
        (errors.InvalidInput("no", code="body_too_large"), "RESOURCE_EXHAUSTED"),
        (errors.NotFound("no"), "NOT_FOUND"),
        (errors.NotFound("no", code="unknown_method"), "UNIMPLEMENTED"),
        (errors.Conflict("no"), "ABORTED"),
        (errors.Denied("no", code="unauthorized"), "UNAUTHENTICATED"),
        (errors.Denied("no", code="forbidden"), "PERMISSION_DENIED"),
        (errors.Unavailable("no", code="queue_full"), "UNAVAILABLE"),
        (errors.DeadlineExceeded("no"), "DEADLINE_EXCEEDED"),
        (errors.IntegrityError("no"), "INTERNAL"),
        (errors.PluginError("no"), "UNIMPLEMENTED"),
        (errors.Internal("no"), "INTERNAL"),
    ],
)
def test_every_kind_of_error_has_a_status_and_keeps_its_code(error, status):
    assert status_of(error) == getattr(grpc.StatusCode, status).value[0]
    assert dict(trailers_of(error))["argosy-code"] == error.code


def test_every_class_of_the_tree_has_a_status():
    for kind in errors.ArgosyError.__subclasses__():
        assert status_of(kind("no")) != 0


def test_a_subclass_is_told_as_its_parent():
    class Special(errors.NotFound):
        code = "special"

    assert status_of(Special("no")) == grpc.StatusCode.NOT_FOUND.value[0]


def test_the_details_say_what_to_do_and_end_somewhere():
    assert details_of(errors.NotFound("no such", hint="look there")) == "no such; look there"
    assert len(details_of(errors.NotFound("é" * 10_000))) == 800


def test_clients_with_a_policy_of_retries_hear_when_to_try_again():
    assert trailers_of(errors.Unavailable("no", retry_after_s=0.25)) == (
        ("argosy-code", "unavailable"),
        ("grpc-retry-pushback-ms", "250"),
    )
