"""`Client`: predictions from any thread, with one deadline over all attempts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Protocol, Self

from argosy.client.calls import Calls, Pause, Send, T, Talk
from argosy.client.http1 import Answer, Request, address_of, tls_context
from argosy.client.messages import Metadata, Model, Prediction
from argosy.client.pool import Pool
from argosy.client.settings import default_url, standing_headers
from argosy.core.clock import Clock, SystemClock
from argosy.core.errors import ArgosyError


class Transport(Protocol):
    """What carries a request to the server and its answer back; `pool.Pool` does."""

    def exchange(self, request: Request, deadline: float) -> Answer:
        """Return the answer; TimeoutError at `deadline` (monotonic seconds)."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class Client:
    """Asks a gateway for predictions. May be shared by threads; keeps connections open between calls.

        client = argosy.Client()
        client.predict("fruit", {"weight": 140, "diameter": 7.1}).outputs["label"]

    - `url`: default the gateway of this machine's `ARGOSY_HOME`, else http://127.0.0.1:8700.
    - `api_key`: default the setting `ARGOSY_API_KEY`; sent only over TLS or to this machine.
    - `timeout_s`: time for a whole call, all attempts and pauses together; the server is told what is left of it.
    - `retries`: further attempts after a refused or lost connection, 503, 502 or 429, as long as they fit into the time
      and into a budget of a tenth of all calls. No retry can do harm: an inference changes nothing.
    - `ca_file`: PEM file of certificates to trust instead of the system's: an authority's, or the server's own.
    - `connect_to`: an address to connect to in place of the URL's host, which is still the name that is checked.
    - `connections`: how many may be open at once; more threads than that wait for one.

    Every method raises the errors of `argosy.core.errors`, with the server's own `code` and `hint`: InvalidInput,
    NotFound, Denied, Unavailable (not reachable, overloaded), DeadlineExceeded. Redirects are not followed, and the
    environment's proxy settings are not used.
    """

    def __init__(
        self,
        url: str = "",
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 2,
        ca_file: str | Path | None = None,
        connect_to: str = "",
        connections: int = 16,
        max_answer_bytes: int = 256 << 20,
        clock: Clock | None = None,
        randomness: Random | None = None,
        transport: Transport | None = None,
    ) -> None:
        """`clock`, `randomness` and `transport` are for tests."""
        address = address_of(url or default_url(), connect_to)
        self._clock = clock or SystemClock()
        chance = randomness or Random()  # noqa: S311 - how long to wait, no secret
        self._calls = Calls(address, self._clock, chance, timeout_s=timeout_s, retries=retries)
        self._transport: Transport = transport or Pool(
            address,
            tls_context(address, ca_file),
            self._clock,
            headers=standing_headers(address, api_key),
            size=connections,
            max_answer_bytes=max_answer_bytes,
        )

    @property
    def url(self) -> str:
        """Where the requests go."""
        return self._calls.address.url

    def predict(self, endpoint: str, inputs: Any, *, timeout_s: float | None = None, caller: str = "") -> Prediction:
        """Ask for a prediction: one row `{"age": 41, "city": "Lyon"}`, a list of rows, or `{"age": [41, 37], …}`.

        A text, or the bytes of an image file, may stand alone if the endpoint has one such input. Outputs are plain
        values; one row in gives one answer out. Arrays are taken as nested lists. `caller` keeps a caller on one
        version while a rollout draws by caller.
        """
        return self._run(self._calls.predict(endpoint, inputs, timeout_s, caller))

    def infer(
        self,
        endpoint: str,
        inputs: Mapping[str, Any],
        *,
        outputs: Sequence[str] = (),
        version: str = "",
        timeout_s: float | None = None,
        caller: str = "",
    ) -> Prediction:
        """Ask with whole tensors by name, over the Open Inference Protocol v2.

        NumPy arrays travel as binary tensors and come back as writable arrays (BYTES as arrays of `bytes`); nested
        lists travel as JSON and come back as nested lists. `outputs`: only these. `version`: the number of one of the
        versions the endpoint serves, instead of the one its route draws.
        """
        return self._run(self._calls.infer(endpoint, inputs, outputs, version, timeout_s=timeout_s, caller=caller))

    def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """Return the endpoints that are served, as far as this key may see them."""
        return self._run(self._calls.models(timeout_s))

    def metadata(self, name: str, *, timeout_s: float | None = None) -> Metadata:
        """Return what an endpoint takes and gives."""
        return self._run(self._calls.metadata(name, timeout_s))

    def ready(self, name: str, *, timeout_s: float | None = None) -> bool:
        """Return whether an endpoint can answer now; also False if there is none of this name (yet)."""
        return self._run(self._calls.ready(name, timeout_s))

    def wait_ready(self, name: str, timeout_s: float = 60.0) -> None:
        """Return when an endpoint can answer, also if the gateway itself is not there yet.

        Raises DeadlineExceeded, with the last reason why not, after `timeout_s`.
        """
        self._run(self._calls.wait_ready(name, timeout_s))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def _run(self, talk: Talk[T]) -> T:
        try:
            step = next(talk)
            while True:
                try:
                    answer = self._do(step)
                except (ArgosyError, TimeoutError) as error:
                    step = talk.throw(error)
                else:
                    step = talk.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def _do(self, step: Send | Pause) -> Answer | None:
        if isinstance(step, Send):
            return self._transport.exchange(step.request, step.deadline)
        self._clock.sleep(step.seconds)
        return None
