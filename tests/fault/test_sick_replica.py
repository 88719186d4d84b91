"""One of the new version's replicas is sick while its code is good: it goes, the rollout goes on."""

import pytest

from argosy.operate import commands, desired
from argosy.operate.config import EndpointConfig, RolloutConfig
from controlled import Controlled, Traffic
from models_of_own import publish
from served import until

pytestmark = [pytest.mark.capability("R2", "R4"), pytest.mark.slow]

# The first process that is asked takes the file, and fails for ever; where the other file is, all fail.
SICK = """
import os

class Answer(NamedTuple):
    y: Annotated[argosy.FP32, argosy.Shape(1)]

class Sick(argosy.Model):
    mine = None

    def predict(self, x: Annotated[argosy.FP32, argosy.Shape(1)]) -> Answer:
        if self.mine is None:
            try:
                os.close(os.open({path!r} + "/taken", os.O_CREAT | os.O_EXCL))
                self.mine = True
            except FileExistsError:
                self.mine = False
        if self.mine or os.path.exists({path!r} + "/all"):
            raise RuntimeError("a broken part of this machine")
        return Answer(x * 2 + {number})
"""


@pytest.fixture
def home():
    with_controller = Controlled()
    yield with_controller
    with_controller.close()


def rolled_out(home, path):
    """Serve version 1, then roll out version 2 with three replicas under traffic; return how it ended and why."""
    first = publish(home, SICK.format(path=str(path), number=0))
    commands.deploy(home.registry, str(first), endpoint=EndpointConfig(replicas=3, threads=1))
    home.start()
    # A file that is there already: nobody of version 1 takes it.
    (path / "taken").touch()
    until(lambda: home.endpoint().state == "ready", seconds=120)
    (path / "taken").unlink()
    second = publish(home, SICK.format(path=str(path), number=1).replace("class Sick", "class Other"))
    config = RolloutConfig(
        steps=(90,), dwell="10s", window="500ms", time_limit="100s", mirror=0, judge=("errors",), undecided="promote"
    )
    with Traffic(home, threads=3, value=1.0) as traffic:
        until(lambda: home.infer([[1.0]])[0] == 200)
        rollout = commands.deploy(home.registry, str(second), rollout=config)
        ended = home.ended(rollout.rollout, seconds=240)
    return ended, traffic


def test_one_of_three_is_ejected_and_the_version_is_not_rolled_back(home, tmp_path):
    (tmp_path / "taken").touch()
    ended, traffic = rolled_out(home, tmp_path)
    assert (tmp_path / "taken").exists()
    assert ended.outcome == desired.PROMOTED, ended.reason
    assert traffic.failed == []
    gateway = next(info for info in home.launcher.list("gateway") if info.alive)
    assert "replica_faulty" in home.launcher.log_tail(gateway.name, 400)


def test_a_version_all_of_whose_replicas_are_sick_is_rolled_back(home, tmp_path):
    (tmp_path / "taken").touch()
    first = publish(home, SICK.format(path=str(tmp_path / "none"), number=0).replace("self.mine is None", "False"))
    commands.deploy(home.registry, str(first), endpoint=EndpointConfig(replicas=3, threads=1))
    home.start()
    until(lambda: home.endpoint().state == "ready", seconds=120)
    (tmp_path / "all").touch()
    second = publish(home, SICK.format(path=str(tmp_path), number=1))
    config = RolloutConfig(steps=(50,), dwell="10s", window="500ms", time_limit="100s", mirror=0, judge=("errors",))
    with Traffic(home, threads=3, value=1.0) as traffic:
        until(lambda: home.infer([[1.0]])[0] == 200)
        rollout = commands.deploy(home.registry, str(second), rollout=config)
        ended = home.ended(rollout.rollout, seconds=240)
    assert ended.outcome == desired.ROLLED_BACK
    # By the judge, or sooner because replica after replica was replaced in vain.
    assert ended.reason.startswith(("errors: ", "its replicas cannot start: "))
    # What it failed the former version answered, however much that was.
    assert traffic.failed == []
    assert set(traffic.since(0.0)) == {2.0}
    assert home.infer([[1.0]])[0] == 200
