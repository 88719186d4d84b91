"""What can be asked for on the page is what the command line does, behind the same checks."""

from types import SimpleNamespace

import msgspec
import pytest

from argosy.core.clock import FakeClock
from argosy.core.config import load_settings
from argosy.core.errors import Conflict, Denied, InvalidInput, NotFound
from argosy.core.tensors import Signature, TensorSpec
from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import RolloutConfig
from argosy.operate.view import Observer, observe
from argosy.registry.registry import Registry
from argosy.registry.versions import Evaluation, FileRef, Manifest
from argosy.web.actions import ACTIONS, Operator, needs_controller, offered, question


class Started:
    """A launcher that only notes what it is asked to start."""

    def __init__(self):
        self.started = []

    def start(self, spec):
        self.started.append(spec.role)


@pytest.fixture
def home(tmp_path):
    settings = load_settings(
        {"ARGOSY_HOME": str(tmp_path / "home"), "ARGOSY_RUNTIME": str(tmp_path / "run"), "USER": "ada"}
    )
    registry = Registry(settings, clock=FakeClock())
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    for content, passed in ((b"a", True), (b"b", True), (b"c", False)):
        registry.versions.publish(
            Manifest(
                name="m", created=1.0, role="original", task="tensor",
                signature=Signature(inputs=(spec,), outputs=(spec,)),
                files={"model.onnx": FileRef(digest=registry.blobs.put(content), size_bytes=1)},
                evaluation=Evaluation(kind="self-check", passed=passed),
            )
        )  # fmt: skip
    launcher = Started()
    return SimpleNamespace(
        settings=settings,
        registry=registry,
        launcher=launcher,
        operator=Operator(settings, launcher, FakeClock()),
        viewer=Operator(settings, launcher, FakeClock(), "viewer"),
    )


def look(home):
    home.registry.log.refresh()
    desired = d.Desired()
    desired.catch_up(home.registry.log)
    return observe(desired, None, [], [], now=0.0, error_of=lambda _: None)


def end(home, outcome):
    """Write what the controller writes when a rollout ends."""
    endpoint = look(home).endpoints[0]
    data = {
        "rollout": endpoint.rollout.id,
        "outcome": outcome,
        "to": endpoint.rollout.to,
        "reason": "",
        "phase": outcome,
    }
    home.registry.log.append(d.ENDED, "m", data)


def entries(home):
    home.registry.log.refresh()
    return [(e.data.get("action"), e.actor) for e in home.registry.log.entries(kind=d.ENDPOINT)]


@pytest.mark.capability("M3")
def test_every_action_writes_the_entry_that_its_command_writes(home):
    assert home.operator.deploy("m:1", "m", None).is_changed
    end(home, d.PROMOTED)
    accepted = home.operator.deploy("m:2", "m", RolloutConfig(steps=(10,), dwell="1s"))
    assert accepted.undo == "argosy rollback m"
    assert home.operator.act("promote", "m").is_changed
    assert home.operator.act("abort", "m").is_changed
    end(home, d.ROLLED_BACK)
    home.operator.deploy("m:2", "m", None)
    end(home, d.PROMOTED)
    assert home.operator.act("undo", "m").is_changed
    assert home.operator.act("remove", "m").is_changed
    actions = [action for action, _ in entries(home)]
    assert actions == ["deploy", "deploy", "promote", "abort", "deploy", "rollback", "remove"]
    assert {actor for _, actor in entries(home)} == {home.settings.actor}
    assert set(home.launcher.started) == {"controller"}  # whoever asks sees to it that somebody acts


def test_a_viewer_can_do_nothing(home):
    home.operator.deploy("m:1", "m", None)
    end(home, d.PROMOTED)
    before = entries(home)
    for action in ACTIONS:
        with pytest.raises(Denied, match="only looks"):
            home.viewer.act(action.name, "m")
    with pytest.raises(Denied):
        home.viewer.deploy("m:2", "m", None)
    with pytest.raises(Denied):
        home.viewer.bring_back()
    assert entries(home) == before
    assert offered(look(home).endpoints[0], "viewer") == []


def test_what_the_command_refuses_is_refused_here(home):
    with pytest.raises(Denied, match="cannot be released"):
        home.operator.deploy("m:3", "m", None)
    with pytest.raises(NotFound):
        home.operator.act("promote", "nobody")
    with pytest.raises(NotFound, match="there is no action"):
        home.operator.act("format", "m")
    home.operator.deploy("m:1", "m", None)
    end(home, d.PROMOTED)
    with pytest.raises(Conflict):
        home.operator.act("promote", "m")
    with pytest.raises(InvalidInput):
        home.operator.deploy("m:2", "m", RolloutConfig(steps=(50, 10)))


def test_only_what_means_something_now_is_offered_and_the_question_says_what_will_be(home):
    names = lambda: [action.name for action in offered(look(home).endpoints[0], "operator")]  # noqa: E731
    home.operator.deploy("m:1", "m", None)
    assert "abort" not in names()  # there is nothing to stay with
    end(home, d.PROMOTED)
    assert names() == ["remove"]
    home.operator.deploy("m:2", "m", RolloutConfig(steps=(10,), dwell="1s"))
    assert [name for name in names() if name in ("promote", "abort", "undo")] == ["promote", "abort"]
    endpoint = look(home).endpoints[0]
    asked = {action.name: question(action, endpoint) for action in ACTIONS}
    assert asked["promote"] == "All requests of 'm' go to 'm:2' now, whatever the evidence says."
    assert asked["abort"] == "The rollout ends. 'm' stays with 'm:1'; no request goes to 'm:2' any more."
    end(home, d.PROMOTED)
    assert "undo" in names()
    home.operator.act("undo", "m")
    end(home, d.PROMOTED)
    assert "undo" not in names()


def test_a_missing_controller_is_only_missed_where_something_is_wanted(home):
    view = look(home)
    assert not needs_controller(view)
    commands.deploy(home.registry, "m:1")
    view = look(home)
    assert needs_controller(view)
    assert not needs_controller(msgspec.structs.replace(view, controller="running"))


def test_the_observer_keeps_the_windows_that_it_has_seen(home):
    gateway = SimpleNamespace(
        status=lambda: SimpleNamespace(windows_waiting=1, replicas=(), endpoints=(), port=1, grpc_port=-1),
        windows=lambda: ["window"],
    )
    launcher = SimpleNamespace(list=list, error=lambda _: None)
    observer = Observer(home.registry.log, launcher, gateway, lambda: 0.0)
    assert observer.windows == []
    observer.look()
    assert observer.windows == ["window"]
