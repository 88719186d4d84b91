"""What each method of a client does, step by step, without doing any of it: send this, wait so long.

`Client` and `AsyncClient` carry the steps out, each in its own way; everything that is decided is decided here.
"""

from collections.abc import Generator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple, TypeVar

from argosy.client import messages
from argosy.client.attempts import Attempts, Budget
from argosy.client.http1 import Address, Answer, Request
from argosy.client.messages import Metadata, Model, Prediction
from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, DeadlineExceeded, InvalidInput, NotFound, Unavailable

MAX_TIMEOUT_S = 600.0
_POLL_S = 0.1
_LOOK_S = 5.0


class Send(NamedTuple):
    """Send this and say what was answered; raise TimeoutError at `deadline` (monotonic seconds)."""

    request: Request
    deadline: float


class Pause(NamedTuple):
    """Do nothing for so long."""

    seconds: float


T = TypeVar("T")
Talk = Generator[Send | Pause, Answer | None, T]
"""One call: yields steps, is sent their answers, is thrown their errors, and returns the result."""


class Calls:
    """The calls of one client; safe for threads."""

    def __init__(self, address: Address, clock: Clock, randomness: Random, *, timeout_s: float, retries: int) -> None:
        self.address = address
        self._clock = clock
        self._randomness = randomness
        self._timeout_s = _checked(timeout_s)
        self._retries = retries
        self._budget = Budget()
        self._known: dict[str, Metadata] = {}

    def predict(self, endpoint: str, inputs: Any, timeout_s: float | None, caller: str) -> Talk[Prediction]:
        """Plain JSON; a content without a name is given that of the endpoint's one input."""
        attempts = self._attempts(endpoint, timeout_s)
        if _is_content(inputs):
            inputs = messages.named_input((yield from self._described(endpoint, attempts)), inputs)
        answer = yield from self._ask(messages.predict_request(endpoint, inputs, caller), attempts)
        return messages.read_prediction(answer)

    def infer(
        self,
        endpoint: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        version: str,
        *,
        timeout_s: float | None,
        caller: str,
    ) -> Talk[Prediction]:
        """Tensors; lists need the datatype that the endpoint says they have."""
        attempts = self._attempts(endpoint, timeout_s)
        datatypes: dict[str, str] = {}
        if not all(messages.is_array(value) for value in inputs.values()):
            datatypes = _datatypes((yield from self._described(endpoint, attempts)), inputs)
        request = messages.infer_request(endpoint, inputs, datatypes, outputs=outputs, version=version, caller=caller)
        return messages.read_inference((yield from self._ask(request, attempts)))

    def models(self, timeout_s: float | None) -> Talk[list[Model]]:
        """The list of endpoints."""
        attempts = self._attempts("", timeout_s)
        return messages.read_models((yield from self._ask(messages.models_request(), attempts)))

    def metadata(self, name: str, timeout_s: float | None) -> Talk[Metadata]:
        """One endpoint's inputs and outputs, asked anew."""
        self._known.pop(name, None)
        return (yield from self._described(name, self._attempts(name, timeout_s)))

    def ready(self, name: str, timeout_s: float | None) -> Talk[bool]:
        """Whether it is there and ready."""
        try:
            yield from self._ask(messages.ready_request(name), self._attempts(name, timeout_s, retries=0))
        except (NotFound, Unavailable) as error:
            if "status" not in error.context:  # nobody said it
                raise
            return False
        return True

    def wait_ready(self, name: str, timeout_s: float) -> Talk[None]:
        """Look again and again."""
        deadline = self._clock.monotonic() + _checked(timeout_s)
        reason = "nothing was heard of it"
        while (left := deadline - self._clock.monotonic()) > 0:
            attempts = self._attempts(name, min(left, _LOOK_S), retries=0)
            try:
                yield from self._ask(messages.ready_request(name), attempts)
            except (NotFound, Unavailable, DeadlineExceeded) as error:
                reason = error.message
            else:
                return
            yield Pause(min(_POLL_S, max(0.0, deadline - self._clock.monotonic())))
        raise DeadlineExceeded(
            f"'{name}' was not ready within {timeout_s:.3g} s: {reason}",
            hint="see what it waits for with: argosy watch",
            code="not_ready_in_time",
        )

    def _described(self, name: str, attempts: Attempts) -> Talk[Metadata]:
        found = self._known.get(name)
        if found is None:
            found = messages.read_metadata((yield from self._ask(messages.metadata_request(name), attempts)))
            self._known[name] = found
        return found

    def _attempts(self, name: str, timeout_s: float | None, *, retries: int | None = None) -> Attempts:
        return Attempts(
            self._clock,
            self._randomness,
            self._budget,
            timeout_s=self._timeout_s if timeout_s is None else _checked(timeout_s),
            retries=self._retries if retries is None else retries,
            what=f"'{name or self.address.url}'",
        )

    def _ask(self, request: Request, attempts: Attempts) -> Talk[Answer]:
        while True:
            try:
                answer = yield Send(request, attempts.deadline)
                assert answer is not None
                if answer.status == 200:
                    return answer
                error = messages.refusal(answer, self.address.url)
            except TimeoutError as late:
                raise attempts.expired() from late
            except ArgosyError as trouble:
                error = trouble
            yield Pause(attempts.pause_after(error))


def _checked(timeout_s: float) -> float:
    if not 0.0 < timeout_s <= MAX_TIMEOUT_S:
        raise InvalidInput(
            f"timeout_s is {timeout_s!r}; give more than 0 and at most {MAX_TIMEOUT_S:.0f} seconds", code="bad_timeout"
        )
    return timeout_s


def _datatypes(metadata: Metadata, inputs: Mapping[str, Any]) -> dict[str, str]:
    known = {spec.name: spec.datatype for spec in metadata.inputs}
    for name in inputs:
        if name not in known:
            raise InvalidInput(
                f"'{metadata.name}' has no input '{name}'; its inputs are: {', '.join(known)}", code="unknown_input"
            )
    return known


def _is_content(inputs: Any) -> bool:
    """Return whether it is a text or an image's bytes, or a list of such."""
    kinds = (str, bytes, bytearray, memoryview)
    is_list = isinstance(inputs, list | tuple) and bool(inputs)
    return isinstance(inputs, kinds) or (is_list and all(isinstance(item, kinds) for item in inputs))
