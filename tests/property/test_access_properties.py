"""Nothing but a granted key ever passes, whatever is sent and whatever happened before."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from argosy.core.clock import FakeClock
from argosy.core.errors import Denied
from argosy.operate.grants import GRANTED, LIFTED, REVOKED, Grants, grant_data
from argosy.security.api_keys import make_key
from argosy.serve.access import POLICIES, Access, AccessKey, AccessRules
from argosy.serve.http import place_of

KEY = make_key(lambda size: bytes(range(size)))
RULES = AccessRules(is_on=True, keys=(AccessKey(id=KEY.id, name="ada", digest=KEY.digest, endpoints=("*",)),))
LETTERS = string.ascii_lowercase + "234567"
TOKENS = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.text(LETTERS, min_size=52, max_size=52).map(lambda secret: f"argosy_{KEY.id}_{secret}".encode()),
    st.builds(lambda a, b: f"argosy_{a}_{b}".encode(), st.text(LETTERS, min_size=8, max_size=8), st.text(LETTERS)),
    # the key with one character put in, taken out or changed
    st.builds(
        lambda at, size, new: (KEY.text[:at] + new + KEY.text[at + size :]).encode(),
        st.integers(0, 68),
        st.integers(0, 2),
        st.text(LETTERS + "_ABC", max_size=1),
    ),
)
SCHEMES = st.sampled_from([b"Bearer ", b"bearer ", b"", b"Basic ", b"Bearer", b"Bearer  ", b"Token "])


@pytest.mark.capability("Z2")
@given(SCHEMES, TOKENS)
@settings(max_examples=1500, deadline=None)
def test_no_random_token_ever_passes(scheme, token):
    access = Access(FakeClock(), RULES)
    is_the_key = token.strip() == KEY.text.encode() and scheme.strip().lower() == b"bearer" and scheme.endswith(b" ")
    for value in (scheme + token, (scheme + token).decode("latin-1")):
        if is_the_key:
            assert access.caller_of(value).name == "ada"
        else:
            with pytest.raises(Denied):
                access.caller_of(value)
        assert len(access._known) <= 2


PARTS = [
    "v2", "models", "m", "versions", "1", "infer", "ready", "predict", "", "%2F", "..", "%2e%2e", "health",
    "live", "metrics", "{endpoint}", "%7Bendpoint%7D", "m%2Finfer", "repository", "index", "config", "stats", "?",
    "x?y", "\xe4",
]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=8))
@settings(max_examples=1500, deadline=None)
def test_a_target_is_open_only_if_it_is_literally_one_of_the_open_paths(parts):
    target = "/" + "/".join(parts)
    path, name, number = place_of(target.encode("utf-8"))
    if POLICIES.get(path) == "open":
        assert target.partition("?")[0].rstrip("/") == path
        assert (name, number) == ("", "")
    if POLICIES.get(path) == "endpoint":
        assert name or "//" in target or target.partition("?")[0].endswith("/"), "an endpoint's path names an endpoint"
    if name:
        assert POLICIES[path] == "endpoint"


class Rules(RuleBasedStateMachine):
    """Grants, revocations and time in any order, against what a list of names says."""

    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.grants = Grants()
        self.access = Access(self.clock, self.grants.rules())
        self.keys = []
        self.valid = {}
        self.is_on = False

    def _apply(self, kind, name, data):
        self.grants.apply(kind, name, data, time=self.clock.now(), actor="eve")
        self.access.set(self.grants.rules())

    @rule(name=st.sampled_from("abc"), lasts=st.sampled_from([0.0, 5.0, 50.0]), endpoint=st.sampled_from(["*", "m"]))
    def grant(self, name, lasts, endpoint):
        key = make_key()
        expires = self.clock.now() + lasts if lasts else 0.0
        self._apply(GRANTED, name, grant_data(key.id, key.digest, (endpoint,), 1.0, expires))
        self.keys.append(key)
        self.valid[name] = (key, endpoint, expires)
        self.is_on = True

    @rule(name=st.sampled_from("abc"))
    def revoke(self, name):
        self._apply(REVOKED, name, {})
        self.valid.pop(name, None)
        self.is_on = True

    @rule()
    def lift(self):
        self._apply(LIFTED, "gateway", {})
        self.valid = {}
        self.is_on = False

    @rule(seconds=st.sampled_from([1.0, 6.0, 60.0]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @invariant()
    def only_valid_keys_pass(self):
        now = self.clock.now()
        held = {key.text: (name, endpoint) for name, (key, endpoint, end) in self.valid.items() if not end or now < end}
        for key in self.keys:
            expected = held.get(key.text)
            if not self.is_on:
                assert self.access.caller_of(f"Bearer {key.text}").name == ""
            elif expected is None:
                with pytest.raises(Denied):
                    self.access.caller_of(f"Bearer {key.text}")
            else:
                caller = self.access.caller_of(f"Bearer {key.text}")
                assert (caller.name, caller.may("other")) == (expected[0], expected[1] == "*")
        if self.is_on:
            with pytest.raises(Denied):
                self.access.caller_of(None)


TestRules = Rules.TestCase
TestRules.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
