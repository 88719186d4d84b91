"""Alerts that Alertmanager sends, and what each may bring about: at most the end of the rollout that runs.

An alert acts only where its rule says so, by the label `argosy_action`. It writes the same entry of the log as
`argosy rollback` does, and only to end a rollout that began before the alert did. So an alert that fires for ever, is
sent again and again, or was left over from an earlier rollout, does nothing more. Everything else is noted.
"""

import datetime as dt
from collections import deque
from typing import Any

import msgspec

from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, InvalidInput
from argosy.operate import desired as d
from argosy.operate.desired import Desired
from argosy.operate.folding import LogEntry, LogLike
from argosy.operate.transactions import Accepted, AsWanted, RegistryLike, transact
from argosy.registry.versions import check_name

ACTOR = "alertmanager"
RECEIVED = "alert.received"
ROLLBACK, FAILOVER, NONE = "rollback", "failover", "none"
ACTIONS = (ROLLBACK, FAILOVER, NONE)

HOUR_S = 3600.0
MOST_ACTIONS = 3
"""Rollouts of one endpoint that alerts may end within an hour: beyond that somebody should look."""
MOST_NOTES = 60
"""Entries that merely note an alert, within an hour; beyond that alerts are only counted."""
MOST_ALERTS = 200
"""Of one notification; the configuration that Argosy writes has Alertmanager send at most 100."""
MOST_LABELS = 64
MOST_CHARACTERS = 2000
_REMEMBERED = 2000

OUTCOMES = (
    "rolled_back", "repeated", "resolved", "noted", "no_rollout", "older_than_rollout", "held_back", "unknown_action",
    "only_counted",
)  # fmt: skip


class Alert(msgspec.Struct, frozen=True, rename="camel"):
    """One alert of a notification (Alertmanager's webhook, version 4)."""

    status: str
    labels: dict[str, str]
    fingerprint: str
    starts_at: dt.datetime
    annotations: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The name of its rule."""
        return self.labels.get("alertname", "")

    @property
    def endpoint(self) -> str:
        """The endpoint it is about, empty when it is about none."""
        return self.labels.get("endpoint", "")

    @property
    def action(self) -> str:
        """What its rule asks for."""
        return self.labels.get("argosy_action", NONE) or NONE

    @property
    def started(self) -> float:
        """When it began to fire, in seconds since 1970."""
        return self.starts_at.timestamp()


class Notification(msgspec.Struct, frozen=True, rename="camel"):
    """What Alertmanager posts."""

    version: str
    alerts: list[Alert]


def read_notification(body: bytes) -> list[Alert]:
    """Return the alerts in a body. Raises InvalidInput that says what is wrong with it."""
    try:
        found = msgspec.json.decode(body, type=Notification)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidInput(
            f"this is no notification of Alertmanager's: {str(error)[:300]}",
            hint="it is JSON as its webhook sends it, version 4",
            code="bad_notification",
        ) from error
    if found.version != "4":
        raise InvalidInput(
            f"the notification has version {found.version[:20]!r}; only version 4 is understood",
            code="bad_notification",
        )
    if len(found.alerts) > MOST_ALERTS:
        raise InvalidInput(
            f"the notification has {len(found.alerts)} alerts; at most {MOST_ALERTS} are taken",
            hint="set max_alerts in Alertmanager's webhook_configs",
            code="bad_notification",
        )
    for alert in found.alerts:
        _check(alert)
    return found.alerts


def _check(alert: Alert) -> None:
    words = (*alert.labels, *alert.labels.values(), *alert.annotations, *alert.annotations.values())
    is_named = 0 < len(alert.fingerprint) <= 64 and alert.fingerprint.isascii() and alert.fingerprint.isalnum()
    if alert.status not in ("firing", "resolved"):
        problem = f"status {alert.status[:20]!r}; it can be 'firing' or 'resolved'"
    elif not is_named:
        problem = f"fingerprint {alert.fingerprint[:40]!r}; it must have 1 to 64 letters and digits"
    elif max(len(alert.labels), len(alert.annotations)) > MOST_LABELS or any(len(w) > MOST_CHARACTERS for w in words):
        problem = f"more than {MOST_LABELS} labels, or one of more than {MOST_CHARACTERS} characters"
    elif alert.starts_at.tzinfo is None:
        problem = "a start without a time zone"
    else:
        return
    raise InvalidInput(f"an alert of the notification has {problem}", code="bad_notification")


class Done(msgspec.Struct, frozen=True):
    """What became of an alert: one of `OUTCOMES`."""

    alert: str
    endpoint: str
    outcome: str


class Receiver:
    """Acts on alerts. What it has to remember it reads from the log, so a restart forgets nothing."""

    def __init__(self, registry: RegistryLike, clock: Clock) -> None:
        """`registry` writes in the name of `ACTOR`."""
        self._registry = registry
        self._clock = clock
        self._head = 0
        self._known: dict[tuple[str, str, str], None] = {}
        """(fingerprint, start, outcome) of what was noted lately."""
        self._notes: deque[float] = deque(maxlen=MOST_NOTES)
        self._acted: deque[tuple[float, str]] = deque(maxlen=1000)
        """When alerts ended a rollout, and of which endpoint."""

    def take(self, alerts: list[Alert]) -> list[Done]:
        """Act on alerts in order. Raises what the log raises: Alertmanager then sends them again."""
        self._registry.log.refresh()
        return [Done(alert.name, alert.endpoint, self._take(alert)) for alert in alerts]

    def _take(self, alert: Alert) -> str:
        self._catch_up()
        if alert.status == "resolved":
            return self._note(alert, "resolved", is_end=True)
        if alert.action == ROLLBACK:
            return self._roll_back(alert)
        return self._note(alert, "noted" if alert.action in ACTIONS else "unknown_action")

    def _roll_back(self, alert: Alert) -> str:
        outcome: list[str] = []

        def stop(state: Desired, word: str) -> None:
            del state
            outcome.append(word)
            raise AsWanted(Accepted(endpoint=alert.endpoint, is_changed=False, summary=word))

        def check(state: Desired) -> None:
            self._catch_up()
            endpoint = state.endpoints.get(alert.endpoint)
            rollout = endpoint.rollout if endpoint is not None else None
            if rollout is None or rollout.base is None or rollout.kind == d.UNDO:
                stop(state, "no_rollout")  # nothing to end, or it is a return already
            elif rollout.rollback_asked or rollout.phase == d.ROLLING_BACK:
                stop(state, "repeated")
            elif alert.started < rollout.asked:
                stop(state, "older_than_rollout")
            elif self._count(alert.endpoint) >= MOST_ACTIONS:
                stop(state, "held_back")

        def data(state: Desired) -> dict[str, Any]:
            rollout = state.endpoints[alert.endpoint].rollout
            return {
                "action": "rollback",
                "rollout": rollout.id if rollout else "",
                "reason": _reason(alert),
                "alert": {"name": alert.name, "fingerprint": alert.fingerprint, "started": alert.started},
            }

        def answer(state: Desired, seq: int) -> Accepted:
            del state
            return Accepted(endpoint=alert.endpoint, is_changed=True, summary="rolled_back", entry=seq)

        accepted = transact(self._registry.log, (d.ENDPOINT, alert.endpoint), check, data, answer)
        if accepted.is_changed:
            return "rolled_back"
        return outcome[-1] if outcome[-1] == "repeated" else self._note(alert, outcome[-1])

    def _count(self, endpoint: str) -> int:
        since = self._clock.now() - HOUR_S
        return sum(1 for time, name in self._acted if name == endpoint and time > since)

    def _note(self, alert: Alert, outcome: str, *, is_end: bool = False) -> str:
        """Write the alert down, once; say what became of it."""
        start = _stamp(alert.started)
        if (alert.fingerprint, start, outcome) in self._known:
            return "resolved" if is_end else "repeated"
        now = self._clock.now()
        if len(self._notes) == MOST_NOTES and self._notes[0] > now - HOUR_S:
            return "only_counted"
        data = {
            "name": alert.name,
            "fingerprint": alert.fingerprint,
            "start": start,
            "action": alert.action[:40],
            "outcome": outcome,
            "reason": _reason(alert),
        }
        self._registry.log.append(RECEIVED, _subject(alert.endpoint), data)
        self._catch_up()
        return outcome

    def _catch_up(self) -> None:
        log = self._registry.log
        if log.head <= self._head:
            return
        for entry in _of_alerts(log, self._head):
            data = entry.data
            if entry.kind == RECEIVED:
                self._notes.append(entry.time)
                self._known[str(data.get("fingerprint")), str(data.get("start")), str(data.get("outcome"))] = None
                while len(self._known) > _REMEMBERED:
                    del self._known[next(iter(self._known))]
            elif data.get("action") == "rollback" and "alert" in data:
                self._acted.append((entry.time, entry.subject))
        self._head = log.head


def _of_alerts(log: LogLike, after: int) -> list[LogEntry]:
    if log.head - after <= 64:
        return [entry for entry in log.entries(after=after) if entry.kind in (RECEIVED, d.ENDPOINT)]
    return [entry for kind in (RECEIVED, d.ENDPOINT) for entry in log.entries(after=after, kind=kind)]


def _subject(endpoint: str) -> str:
    """Return what an entry is about; a label may hold what no endpoint can be called."""
    try:
        check_name(endpoint)
    except ArgosyError:
        return "alert"
    return endpoint


def _reason(alert: Alert) -> str:
    """Return why, in one line of bounded length; labels and annotations may hold anything."""
    said = alert.annotations.get("summary") or alert.annotations.get("description") or ""
    text = f"alert {alert.name or 'without a name'}" + (f": {said}" if said else "")
    return "".join(c if c.isprintable() else " " for c in text)[:300]


def _stamp(time: float) -> str:
    return dt.datetime.fromtimestamp(time, dt.UTC).isoformat(timespec="milliseconds")


def answer_of(done: list[Done]) -> bytes:
    """Return the JSON that the receiver answers."""
    return msgspec.json.encode({"alerts": done})
