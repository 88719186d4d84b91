"""`sticky = true`: a caller who says who it is stays with one version, over HTTP and while the share grows."""

import pytest

from served import Served, constant


@pytest.fixture
def home():
    made = Served()
    yield made
    made.close()


def answered(home, caller):
    headers = {"argosy-caller": caller} if caller else {}
    return home.infer([[1.0]], headers=headers)[2]["outputs"][0]["data"][0]


@pytest.mark.capability("R2")
def test_a_caller_stays_with_its_version_and_a_growing_share_only_adds_callers(home):
    stable, canary = home.publish(constant(1.0)), home.publish(constant(2.0))
    home.gateway()
    home.ready(home.replica(stable), home.replica(canary))
    callers = [f"caller {n}" for n in range(24)]
    seen = {}
    for share in (0.3, 0.7):
        home.route(stable, canary=canary, share=share, rollout="r1", sticky=True, window_s=1.0)
        found = {caller: {answered(home, caller) for _ in range(3)} for caller in callers}
        assert all(len(versions) == 1 for versions in found.values())
        new = {caller for caller, versions in found.items() if versions == {2.0}}
        assert seen.get("new", set()) <= new
        seen["new"] = new
    assert 0 < len(seen["new"]) < len(callers)
    # Without a name every request is drawn by itself.
    assert {answered(home, "") for _ in range(60)} == {1.0, 2.0}
