"""Code of users that crashes, hangs or takes all memory: its own version suffers, no other does."""

import contextlib

import pytest

from argosy.operate import commands
from argosy.operate.config import EndpointConfig
from controlled import Controlled, Traffic
from models_of_own import publish
from served import constant, until

POISON = 13.0
# A request of this value does what the test says, others are answered.
POISONED = """
import ctypes, os, re, signal, threading

class Answer(NamedTuple):
    y: Annotated[argosy.FP32, argosy.Shape(1)]

class Poisoned(argosy.Model):
    def predict(self, x: Annotated[argosy.FP32, argosy.Shape(1)]) -> Answer:
        if (x == 13).any():
            {poison}
        return Answer(x * 2)
"""


class To:
    """One endpoint of a home, as `Traffic` asks it."""

    def __init__(self, home, name):
        self.home = home
        self.name = name

    def infer(self, rows, **given):
        return self.home.infer(rows, name=self.name, **given)


@pytest.fixture
def home():
    with_controller = Controlled()
    yield with_controller
    with_controller.close()


def deploy(home, version, name, **given):
    commands.deploy(home.registry, str(version), name=name, endpoint=EndpointConfig(**given))
    home.start()


def is_served(home, name):
    with contextlib.suppress(StopIteration):
        return home.endpoint(name).state == "ready"
    return False


@pytest.fixture
def three(home):
    """Two endpoints of Python code and one of ONNX; the first is poisoned with what the test says."""

    def start(poison, **given):
        deploy(home, publish(home, POISONED.format(poison=poison), name="bad"), "bad", **given)
        deploy(home, publish(home, POISONED.format(poison="pass"), name="good"), "good")
        deploy(home, home.publish(constant(7.0), name="m"), "m")
        until(lambda: all(is_served(home, name) for name in ("bad", "good", "m")), seconds=90)
        return home

    return start


def pids(home, name):
    return {r.pid for r in home.client.status().replicas if r.ref.startswith(f"{name}:") and r.state == "ready"}


def poison(home, patience_s=30.0):
    return home.infer([[POISON]], name="bad", timeout=patience_s + 10)[0]


@pytest.mark.capability("I3", "R4")
@pytest.mark.parametrize(
    "does",
    [
        "os._exit(3)",
        "ctypes.string_at(0)",
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", marks=pytest.mark.slow),
        pytest.param("os.killpg(0, signal.SIGTERM); os.kill(os.getpid(), signal.SIGABRT)", marks=pytest.mark.slow),
        # Holds the interpreter for ever, so not even a heartbeat gets out.
        're.match(r"(a+)+$", "a" * 64 + "b")',
    ],
    ids=["exit", "segfault", "kill", "abort of its group", "hang"],
)
def test_code_that_takes_its_process_down_is_replaced_and_no_other_version_notices(three, does):
    home = three(does)
    before, others = pids(home, "bad"), pids(home, "good") | pids(home, "m")
    with Traffic(To(home, "good"), threads=1, value=1.0) as good, Traffic(To(home, "m"), threads=1) as onnx:
        assert poison(home) >= 500
        until(lambda: is_served(home, "bad") and pids(home, "bad") and not pids(home, "bad") & before, seconds=60)
        status, _, body = home.infer([[4.0]], name="bad")
        assert (status, body["outputs"][0]["data"]) == (200, [8.0])
    assert good.failed == onnx.failed == []
    assert {found for _, _, found in good.answers} == {2.0}
    assert {found for _, _, found in onnx.answers} == {7.0}
    assert pids(home, "good") | pids(home, "m") == others


def test_a_leap_of_memory_fails_its_request_only(three):
    home = three("np.ones(1 << 34)", memory="500MB")
    before = pids(home, "bad")
    status, _, body = home.infer([[POISON]], name="bad")
    assert status == 500
    assert "more memory than this process may take" in body["error"]
    assert home.infer([[4.0]], name="bad")[0] == 200
    assert pids(home, "bad") == before


def test_threads_and_processes_it_leaves_behind_end_with_it(three, tmp_path):
    mark = tmp_path / "pid"
    does = (
        f"import subprocess; open({str(mark)!r}, 'w').write(str(subprocess.Popen(['sleep', '1000']).pid)); os._exit(1)"
    )
    home = three(does)
    before = pids(home, "bad")
    poison(home)
    until(lambda: pids(home, "bad") and not pids(home, "bad") & before, seconds=60)
    home.down()
    left = int(mark.read_text())
    until(lambda: not is_alive(left))


def is_alive(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
        return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def test_a_version_that_takes_more_memory_than_it_may_once_loaded_says_so(home):
    text = POISONED.format(poison="pass").replace(
        "class Poisoned(argosy.Model):", "class Poisoned(argosy.Model):\n    kept = np.ones(25 << 20)\n"
    )
    deploy(home, publish(home, text, name="bad"), "bad", memory="200MB")
    last = until(lambda: home.endpoint("bad").last, seconds=40)
    assert "takes" in last.reason
    assert "of memory once it is loaded, but a replica may take 200 MB" in last.reason


@pytest.mark.slow
@pytest.mark.capability("R4")
def test_a_loop_without_end_is_given_up_and_its_replica_replaced(three):
    home = three("\n            while True:\n                pass")
    before = pids(home, "bad")
    with Traffic(To(home, "good"), threads=1, value=1.0) as good:
        assert poison(home) >= 500
        until(lambda: pids(home, "bad") and not pids(home, "bad") & before, seconds=90)
        assert home.infer([[4.0]], name="bad", timeout=60)[0] == 200
    assert good.failed == []
