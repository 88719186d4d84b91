"""Whether the version of an endpoint fails everywhere, so that another one must answer. Pure: time comes in.

A replica that dies is replaced by its siblings, and an endpoint whose version has no ready replica is answered by its
backup anyway. This is for what remains: all replicas are up, and what they say is wrong, or they come up only to die.
A failure counts only if it is the version's: not where the backup failed on the same input, not refusals, and a batch
that failed together counts once.
"""

from collections import deque
from typing import Literal

LEAST_FAILURES = 5
"""So many failures, or nothing is concluded."""
IN_A_ROW_S = 60.0
"""That many failures in a row are enough when traffic is thin, unless two of them are this far apart."""
SHORT_S, LONG_S = 1.5, 30.0
"""Over which times the share of failures is looked at: the short one sees an outage, the long one a part that fails."""
OUTAGES, OUTAGES_S = 3, 60.0
"""Losing its last replica so often within such a time is a crash loop: being ready for a moment is no recovery."""
SLICE_S = 0.25
PROBE_EVERY_S = 0.2
"""A failing version gets a copy of a request so often; nobody waits for its answer."""
PROBES = 10
"""So many good answers in a row, and it is tried again."""
AWAY_S, MOST_AWAY_S = 5.0, 300.0
"""Least time away; doubled at each relapse within `RELAPSE_S`, so that a version on the brink does not flap."""
RELAPSE_S = 600.0
QUIET_S = 30.0
"""Without any request for so long nothing can be learned from copies; then the next requests try it."""

Cause = Literal["errors", "crashes"]


class Health:
    """What is known of one version at one endpoint."""

    def __init__(self, share: float) -> None:
        """`share`: of the requests that may fail; more, and the version fails. 0: errors are never a reason."""
        self.good = 0
        """Clean answers in this slice of time, for whoever takes one to count up."""
        self.failing: str = ""
        """Why the version counts as failing; empty while it doesn't."""
        self.cause: Cause = "errors"
        self._share = share
        self._bad = 0
        self._slices: deque[tuple[float, int, int]] = deque()
        self._slice_end = 0.0
        self._in_a_row = 0
        self._last_bad = float("-inf")
        self._last_batch = 0
        self._outages: deque[float] = deque(maxlen=OUTAGES)
        self._since = self._returned = float("-inf")
        self._away_s = AWAY_S
        self._next_probe = 0.0
        self._probes = 0

    def bad(self, now: float, message: str, batch: int = 0) -> bool:
        """Count a failure that is the version's; return whether it counts as failing from now on."""
        if batch and batch == self._last_batch:
            return False
        self._last_batch = batch
        if self.good or now - self._last_bad > IN_A_ROW_S:
            self._in_a_row = 0
        self._in_a_row += 1
        self._last_bad = now
        self._bad += 1
        if self.failing or not self._share:
            return False
        for seconds in (SHORT_S, LONG_S):
            good, bad = self._over(now - seconds)
            if bad >= LEAST_FAILURES and bad >= self._share * (good + bad):
                return self._fail(
                    now, "errors", f"{bad} of {good + bad} requests failed within {seconds:g} s: {message}"
                )
        if self._in_a_row >= LEAST_FAILURES:
            return self._fail(now, "errors", f"{self._in_a_row} requests in a row failed: {message}")
        return False

    def outage(self, now: float) -> bool:
        """Count the loss of the last ready replica; return whether the version counts as failing from now on."""
        self._outages.append(now)
        if self.failing or len(self._outages) < OUTAGES or now - self._outages[0] > OUTAGES_S:
            return False
        return self._fail(
            now, "crashes", f"its last replica ended {OUTAGES} times within {now - self._outages[0]:.0f} s"
        )

    def turn(self, now: float, *, last_request: float) -> bool:
        """Close slices of time that are over; return whether the version is given another try from now on."""
        if now >= self._slice_end:
            if self.good or self._bad:
                if self.good:
                    self._in_a_row = 0
                self._slices.append((now, self.good, self._bad))
                self.good = self._bad = 0
            while self._slices and self._slices[0][0] < now - LONG_S:
                self._slices.popleft()
            self._slice_end = now + SLICE_S
        if not self.failing or now - self._since < self._away_s:
            return False
        if self._probes < PROBES and now - max(last_request, self._since) < QUIET_S:
            return False
        self.failing, self._returned = "", now
        self._forget()
        return True

    def wants_probe(self, now: float) -> bool:
        """Return whether a copy of a request should be sent to the failing version; it is counted as sent then."""
        if now < self._next_probe:
            return False
        self._next_probe = now + PROBE_EVERY_S
        return True

    def probed(self, *, is_good: bool) -> None:
        """Take what came of such a copy."""
        self._probes = self._probes + 1 if is_good else 0

    def _fail(self, now: float, cause: Cause, why: str) -> bool:
        is_relapse = now - self._returned < RELAPSE_S
        self._away_s = min(MOST_AWAY_S, 2 * self._away_s) if is_relapse else AWAY_S
        self.failing, self.cause, self._since = why, cause, now
        self._forget()
        return True

    def _forget(self) -> None:
        self._slices.clear()
        self._outages.clear()
        self.good = self._bad = self._in_a_row = self._probes = 0

    def _over(self, since: float) -> tuple[int, int]:
        good, bad = self.good, self._bad
        for end, more_good, more_bad in reversed(self._slices):
            if end < since:
                break
            good += more_good
            bad += more_bad
        return good, bad
