"""A replica that got to a request when its time was over: the caller is told so, not to try again."""

import pytest

from argosy.core.errors import DeadlineExceeded, Unavailable
from argosy.serve.wire import TOO_LATE
from plane import World


@pytest.mark.parametrize(("passed_s", "kind"), [(0.5, Unavailable), (2.0, DeadlineExceeded)])
def test_too_late_for_the_whole_request_is_a_deadline_and_not_a_retry(passed_s, kind):
    world = World()
    replica = world.replica()
    world.route()
    call = world.send(timeout_s=1.0)
    # The wheel, which would tell it as well, has not turned yet.
    world.clock.advance(passed_s)
    replica.fail_each(code=TOO_LATE)
    assert isinstance(call.error, kind), call.error
