"""What an operator can say about access, and what the log's entries about it add up to."""

from random import Random
from types import SimpleNamespace

import pytest

from argosy.core.clock import FakeClock
from argosy.core.digest import canonical
from argosy.core.errors import Conflict, InvalidInput, NotFound
from argosy.operate import access
from argosy.operate import desired as d
from argosy.operate.desired import Desired
from argosy.operate.gateway_settings import GatewaySettings
from argosy.operate.grants import GRANTED, LIFTED, REVOKED, Grants
from argosy.operate.memory import FakeLog
from argosy.security.api_keys import key_digest, make_key
from argosy.serve.access import Access

KEY = make_key(Random(3).randbytes)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def registry(clock):
    return SimpleNamespace(log=FakeLog([], clock), versions=None)


def state(registry):
    found = Desired()
    registry.log.refresh()
    found.catch_up(registry.log)
    return found


def enforced(registry, clock):
    return Access(clock, state(registry).access.rules())


@pytest.mark.capability("Z2")
def test_a_granted_key_passes_for_what_it_was_granted_and_the_log_holds_only_its_digest(registry, clock):
    granted = access.grant(registry, "ada", endpoints=["digits", "a", "digits"], weight=2.5, clock=clock)
    caller = enforced(registry, clock).caller_of(f"Bearer {granted.key}")
    assert (caller.name, caller.weight, caller.endpoints) == ("ada", 2.5, {"a", "digits"})
    assert granted.summary == "'ada' may use 'a', 'digits'; from now on nobody does without a key"
    assert granted.undo == "argosy access revoke ada"
    written = b"".join(canonical(entry.data) for entry in registry.log.entries()).decode()
    assert key_digest(granted.key) in written
    assert granted.key not in written
    assert granted.key[16:] not in written + repr(granted)


def test_a_key_without_endpoints_is_for_all_of_them(registry, clock):
    granted = access.grant(registry, "ada", clock=clock)
    assert granted.summary.startswith("'ada' may use every endpoint")
    assert enforced(registry, clock).caller_of(f"Bearer {granted.key}").may("whatever")
    assert access.grant(registry, "bob", clock=clock).summary == "'bob' may use every endpoint"


def test_a_key_lasts_as_long_as_was_said(registry, clock):
    granted = access.grant(registry, "ada", lasts_s=60.0, clock=clock)
    gate = enforced(registry, clock)
    assert granted.expires == clock.now() + 60
    assert gate.caller_of(f"Bearer {granted.key}").name == "ada"
    clock.advance(60)
    with pytest.raises(Exception, match="has expired"):
        gate.caller_of(f"Bearer {granted.key}")
    again = access.grant(registry, "ada", clock=clock)
    assert again.key != granted.key
    assert enforced(registry, clock).caller_of(f"Bearer {again.key}").name == "ada"
    with pytest.raises(Exception, match="not valid"):
        enforced(registry, clock).caller_of(f"Bearer {granted.key}")


def test_a_second_key_for_a_name_is_refused_and_says_what_to_do(registry, clock):
    granted = access.grant(registry, "ada", clock=clock)
    with pytest.raises(Conflict, match=f"'ada' has a key already \\(id {granted.id}\\)") as caught:
        access.grant(registry, "ada", clock=clock)
    assert "argosy access revoke ada" in caught.value.hint
    assert registry.log.head == 1


@pytest.mark.capability("Z2")
def test_revoking_takes_one_key_back_and_the_last_one_leaves_the_gateway_closed(registry, clock):
    first, second = access.grant(registry, "ada", clock=clock), access.grant(registry, "bob", clock=clock)
    accepted = access.revoke(registry, "ada")
    assert accepted.is_changed
    gate = enforced(registry, clock)
    assert gate.caller_of(f"Bearer {second.key}").name == "bob"
    with pytest.raises(Exception, match="not valid"):
        gate.caller_of(f"Bearer {first.key}")
    assert not access.revoke(registry, "ada").is_changed
    assert access.revoke(registry, "bob").summary.endswith("nobody has one now, so nobody is served")
    assert state(registry).access.is_on
    with pytest.raises(Exception, match="needs a key"):
        enforced(registry, clock).caller_of(None)


def test_revoking_an_unknown_name_lists_the_known_ones_and_writes_nothing(registry, clock):
    access.grant(registry, "ada", clock=clock)
    with pytest.raises(NotFound, match="nobody called 'adam' has a key; known are: 'ada'"):
        access.revoke(registry, "adam")
    assert registry.log.head == 1


def test_lifting_access_control_ends_every_key_for_good(registry, clock):
    first = access.grant(registry, "ada", clock=clock)
    assert access.lift(registry).is_changed
    assert not access.lift(registry).is_changed
    assert enforced(registry, clock).caller_of(None).may("anything")
    second = access.grant(registry, "bob", clock=clock)
    gate = enforced(registry, clock)
    assert gate.caller_of(f"Bearer {second.key}").name == "bob"
    with pytest.raises(Exception, match="not valid"):
        gate.caller_of(f"Bearer {first.key}")


def test_access_control_is_not_lifted_where_others_reach_the_gateway(registry, clock):
    access.grant(registry, "ada", clock=clock)
    data = GatewaySettings(host="10.0.0.7", tls_cert="/c", tls_key="/k").plain()
    registry.log.append(d.GATEWAY, "gateway", {"running": None, **data})
    with pytest.raises(Conflict, match=r"listens on 10\.0\.0\.7, where others reach it"):
        access.lift(registry)
    assert state(registry).access.is_on


@pytest.mark.parametrize(
    "given",
    [
        {"name": "a b"},
        {"name": "../x"},
        {"name": ""},
        {"endpoints": ["*"]},
        {"endpoints": ["a/b"]},
        {"weight": 0.0},
        {"weight": -1.0},
        {"weight": 1000.0},
        {"weight": float("nan")},
        {"lasts_s": -1.0},
        {"lasts_s": float("inf")},
        {"lasts_s": float("nan")},
    ],
)
def test_impossible_grants_are_refused_before_anything_is_written(registry, clock, given):
    with pytest.raises(InvalidInput):
        access.grant(registry, given.pop("name", "ada"), clock=clock, **given)
    assert registry.log.head == 0


def test_what_was_checked_still_holds_when_somebody_else_is_faster(registry, clock):
    entries = registry.log._entries
    rival = SimpleNamespace(log=FakeLog(entries, clock, "bob"), versions=None)

    def hook(what, kind):
        if what == "before append" and not raced:
            raced.append(1)
            access.grant(rival, "ada", clock=clock)

    raced = []
    registry.log._hook = hook
    with pytest.raises(Conflict, match="has a key already"):
        access.grant(registry, "ada", clock=clock)


# ---- the fold


def folded(*entries):
    found = Grants()
    for kind, subject, data in entries:
        found.apply(kind, subject, data, time=1.0, actor="eve")
    return found


GOOD = {"id": KEY.id, "digest": KEY.digest, "endpoints": ["*"], "weight": 1.0, "expires": 0.0}


def test_rules_are_the_same_object_until_an_entry_changes_them():
    found = folded((GRANTED, "ada", GOOD))
    rules = found.rules()
    assert found.rules() is rules
    found.apply(REVOKED, "ada", {}, time=2.0, actor="eve")
    assert found.rules() != rules


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"id": "ABCDEFGH"},
        {"id": None},
        {"digest": "00"},
        {"digest": KEY.digest.upper()},
        {"endpoints": []},
        {"endpoints": "*"},
        {"endpoints": [1]},
        {"endpoints": None},
        {"weight": 0},
        {"weight": -1.0},
        {"weight": "much"},
        {"expires": -1.0},
        {"expires": "never"},
    ],
)
def test_an_entry_that_cannot_be_understood_grants_nothing_and_closes(change):
    for data in (GOOD | change, {k: v for k, v in GOOD.items() if k not in change}):
        found = folded((GRANTED, "ada", data))
        assert found.is_on
        assert found.rules().keys == ()


def test_a_wrong_entry_ends_the_key_the_name_had():
    assert folded((GRANTED, "ada", GOOD), (GRANTED, "ada", {})).rules().keys == ()


def test_nobody_can_name_themselves_another_in_the_data():
    grant = folded((GRANTED, "ada", GOOD | {"name": "root", "actor": "root", "granted": 9.0})).by_name["ada"]
    assert (grant.name, grant.actor, grant.granted) == ("ada", "eve", 1.0)


def test_lifting_opens_and_any_later_entry_closes_again():
    assert not folded((GRANTED, "ada", GOOD), (LIFTED, "gateway", {})).is_on
    assert folded((LIFTED, "gateway", {}), (REVOKED, "ada", {})).is_on
    assert not Grants().is_on
