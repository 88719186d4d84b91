"""What a rollout will see, told before it starts."""

import pytest

from argosy.operate.config import RolloutConfig
from argosy.operate.outlook import outlook


@pytest.mark.capability("R2")
def test_dense_traffic_is_enough_and_thin_traffic_gets_a_proposal():
    dense = outlook(RolloutConfig(), requests_per_min=6000, failed_share=0.02)
    assert dense.is_enough
    assert dense.rollback_min < 3
    assert not any("mirror = 100" in line for line in dense.lines)
    thin = outlook(RolloutConfig(), requests_per_min=6, failed_share=0.02)
    assert not thin.is_enough
    assert any("stay undecided, and return to the current version" in line for line in thin.lines)
    assert any("mirror = 100" in line and "shadow" in line for line in thin.lines)


def test_a_service_that_never_fails_is_promoted_by_clean_requests():
    found = outlook(RolloutConfig(), requests_per_min=600, failed_share=0.0)
    assert found.is_enough
    assert found.rollback_min is None
    assert found.promote_min == pytest.approx(811 / 300, rel=0.02)


def test_a_shadow_needs_its_pairs_and_says_when_they_will_not_come():
    found = outlook(RolloutConfig(kind="shadow", mirror=100), requests_per_min=100, failed_share=0.0)
    assert found.is_enough
    assert found.promote_min == pytest.approx(8.11)
    slow = outlook(RolloutConfig(kind="shadow"), requests_per_min=100, failed_share=0.0)
    assert not slow.is_enough
    assert "raise mirror" in slow.lines[-1]
    assert not outlook(RolloutConfig(kind="shadow"), requests_per_min=0, failed_share=0.0).is_enough


def test_what_is_judged_by_nothing_says_so():
    assert "judged by nothing" in outlook(RolloutConfig(steps=()), requests_per_min=1, failed_share=0).lines[0]
