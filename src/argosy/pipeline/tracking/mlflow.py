"""Runs on an MLflow tracking server, by its REST API (mlflow.org, REST API 2.0); no client library is needed."""

import http.client
import json
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from argosy.core.clock import Clock

_TIMEOUT_S = 10.0
_CLOSE_S = 20.0
"""What is still to be sent at the end gets so long."""
_ATTEMPTS, _PAUSE_S = 3, 1.0
"""A busy server gets so many; numbers that arrive twice are the same numbers."""
_MOST_WAITING = 1000
_MOST_METRICS, _MOST_PARAMETERS, _MOST_TEXT = 1000, 100, 500
"""Limits of one request, and of a parameter's text in the oldest servers that are in use."""
_FAILURES = (urllib.error.URLError, http.client.HTTPException, OSError, ValueError, KeyError)


class Mlflow:
    """Sends the numbers of one run from a thread of its own. A server that doesn't answer is told once, and left."""

    def __init__(self, url: str, experiment: str, run: str, clock: Clock, say: Callable[[str], None]) -> None:
        self._url = url.rstrip("/")
        self._experiment, self._name = experiment, run
        self._clock, self._say = clock, say
        self._waiting: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
        self._thread.start()

    def settings(self, values: Mapping[str, Any]) -> None:
        """Send the settings as parameters."""
        found = [{"key": name, "value": _short(value)} for name, value in values.items()]
        for start in range(0, len(found), _MOST_PARAMETERS):
            self._put("runs/log-batch", {"params": found[start : start + _MOST_PARAMETERS]})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers as metrics."""
        now = int(self._clock.now() * 1000)
        found = [{"key": name, "value": x, "timestamp": now, "step": step} for name, x in values.items()]
        for start in range(0, len(found), _MOST_METRICS):
            self._put("runs/log-batch", {"metrics": found[start : start + _MOST_METRICS]})

    def close(self, *, failed: bool) -> None:
        """Send the rest, and how it ended."""
        ended = {"status": "FAILED" if failed else "FINISHED", "end_time": int(self._clock.now() * 1000)}
        self._put("runs/update", ended)
        try:
            self._waiting.put(None, timeout=_CLOSE_S)
        except queue.Full:
            return
        self._thread.join(_CLOSE_S)

    def _put(self, path: str, body: dict[str, Any]) -> None:
        try:
            self._waiting.put_nowait((path, body))
        except queue.Full:
            return  # the server is slower than the training: a point of a curve is not worth waiting for

    def _send_all(self) -> None:
        try:
            run = self._start()
            while (item := self._waiting.get()) is not None:
                path, body = item
                self._ask(path, {"run_id": run, **body})
        except _FAILURES as error:
            self._say(f"no log in MLflow: '{self._url}' can't be used ({_told(error)})")
            while self._waiting.get() is not None:  # so that nobody waits for a place
                pass

    def _start(self) -> str:
        now = int(self._clock.now() * 1000)
        found = self._ask(
            "runs/create",
            {"experiment_id": self._experiment_id(), "run_name": self._name, "start_time": now},
        )
        return str(found["run"]["info"]["run_id"])

    def _experiment_id(self) -> str:
        query = urlencode({"experiment_name": self._experiment})
        try:
            return str(self._ask(f"experiments/get-by-name?{query}")["experiment"]["experiment_id"])
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
        return str(self._ask("experiments/create", {"name": self._experiment})["experiment_id"])

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._asked(path, body)
            except _FAILURES as error:
                if attempt == _ATTEMPTS or (isinstance(error, urllib.error.HTTPError) and error.code < 500):
                    raise
                self._clock.sleep(_PAUSE_S)
        return None

    def _asked(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - its scheme was checked with the settings
            f"{self._url}/api/2.0/mlflow/{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - as above
            return json.loads(answer.read() or b"{}")


def _short(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:_MOST_TEXT]


def _told(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered {error.code}"
    reason = getattr(error, "reason", None)
    return str(reason or error)[:200] or type(error).__name__
