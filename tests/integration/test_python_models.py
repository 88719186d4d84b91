"""Models of one's own behind a real gateway, in replicas of their own."""

import json
import threading
import time

import pytest

from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig, RolloutConfig
from controlled import Controlled, Traffic
from models_of_own import publish
from served import Served, constant, until

ODD = """
import time

class Answer(NamedTuple):
    y: Annotated[argosy.FP32, argosy.Shape(1)]
    together: argosy.INT64

class Odd(argosy.Model):
    examples = [{"x": [1.0]}]

    def predict(self, x: Annotated[argosy.FP32, argosy.Shape(1)]) -> Answer:
        if (x > 1).any():  # examples, by which batches are timed, are quick
            time.sleep(0.02)  # so that requests queue up and run together
        if (x == 13).any():
            raise ValueError("/secret/path")
        if (x == 14).any():
            raise argosy.Refused("fourteen is not for sale")
        y = np.where(x == 15, np.nan, x * 2)
        return Answer(y[:-1] if (x == 16).any() else y, np.full(len(x), len(x)))
"""

TEXTS = """
class Answer(NamedTuple):
    label: argosy.Text
    scores: Annotated[argosy.FP32, argosy.Columns("short", "long")]

class Length(argosy.Model):
    def load(self, files: argosy.Files) -> None:
        self.limit = json.loads(files["settings/limit.json"])["limit"]
        print("the limit is", self.limit)

    def predict(self, text: argosy.Text) -> Answer:
        is_long = np.array([len(item) > self.limit for item in text])
        return Answer(np.where(is_long, "long", "short"), np.stack([~is_long, is_long], axis=1).astype("float32"))
"""

CONSTANT = """
class Answer(NamedTuple):
    y: Annotated[argosy.FP32, argosy.Shape(1)]

class Constant(argosy.Model):
    def predict(self, x: Annotated[argosy.FP32, argosy.Shape(1)]) -> Answer:
        {before}
        return Answer(np.full_like(x, {value}))
"""


@pytest.fixture
def served():
    found = Served()
    try:
        yield found.gateway()
    finally:
        found.close()


@pytest.fixture
def home():
    with_controller = Controlled()
    yield with_controller
    with_controller.close()


def ready(served, version, name="m"):
    replica = served.replica(version)
    served.ready(replica).route(version, name)
    return replica


def all_at_once(served, values):
    """Ask for each value in a thread of its own; return status and body of each."""
    found = {}

    def ask(value):
        found[value] = served.infer([[value]])

    threads = [threading.Thread(target=ask, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {value: (status, body) for value, (status, _, body) in found.items()}


def outputs(answer):
    status, body = answer
    assert status == 200, body
    return {output["name"]: output["data"] for output in body["outputs"]}


@pytest.mark.capability("I3")
def test_in_a_batch_each_request_gets_what_it_deserves(served):
    replica = ready(served, publish(served, ODD))
    assert served.client.status().replicas[0].max_batch > 1
    good = range(2, 13)

    def ran_together():
        found = {value: outputs(answer) for value, answer in all_at_once(served, good).items()}
        assert {value: given["y"] for value, given in found.items()} == {value: [2.0 * value] for value in good}
        return max(given["together"][0] for given in found.values()) > 1

    def was_repeated():
        found = all_at_once(served, [*good, 13, 14, 15, 16])
        assert {value: outputs(found[value])["y"] for value in good} == {value: [2.0 * value] for value in good}
        assert [found[value][0] for value in (13, 14, 15, 16)] == [500, 400, 500, 500]
        assert "ValueError" in found[13][1]["error"]
        assert "secret" not in json.dumps(found[13][1])
        assert found[14][1]["code"] == "input_refused"
        assert "fourteen is not for sale" in found[14][1]["error"]
        assert found[15][1]["code"] == "non_finite_output"
        assert "has the shape [0, 1], but for 1 rows [1, 1] was promised" in found[16][1]["error"]
        return "batch_repeated_singly" in served.launcher.log_tail(replica)

    # Which requests meet in a batch is up to the scheduler, so until some have.
    for is_seen in (ran_together, was_repeated):
        deadline = time.monotonic() + 30
        while not is_seen():
            assert time.monotonic() < deadline


@pytest.mark.capability("I2")
def test_texts_go_in_and_labels_come_out_with_names(served):
    replica = ready(
        served, publish(served, "import json\n" + TEXTS, **{"settings/limit__json": '{"limit": 3}'}), name="length"
    )
    status, _, body = served.ask("POST", "/predict/length", {"inputs": {"text": "sentence"}})
    assert (status, body["outputs"]) == (200, {"label": "long", "scores": {"short": 0.0, "long": 1.0}})
    status, _, body = served.ask("POST", "/predict/length", {"inputs": {"text": ["é", "éééé"]}})
    assert body["outputs"]["label"] == ["short", "long"]
    assert "the limit is 3" in served.launcher.log_tail(replica), "what it prints is in the replica's log"


def test_a_replica_of_it_has_no_secrets_and_a_folder_of_its_own(served, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    text = """
import os

class Look(argosy.RowModel):
    def predict(self, name: str) -> str:
        return os.environ.get(name, "") if name != "cwd" else os.getcwd()
"""
    replica = ready(served, publish(served, text))

    def look(name):
        return served.ask("POST", "/predict/m", {"inputs": {"name": name}})[2]["outputs"]["output"]

    assert look("AWS_SECRET_ACCESS_KEY") == ""
    assert look("OMP_NUM_THREADS") == "1"
    assert look("cwd") == str(served.folder / "processes" / replica / "work") == look("TMPDIR")


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("import no_such_library\n" + ODD, "missing_package", "model.py:9 imports 'no_such_library'"),
        (ODD + "    def load(self, files):\n        1 / 0\n", "model_code_failed", "ZeroDivisionError"),
    ],
)
def test_a_version_that_does_not_load_here_says_why(served, text, code, said):
    version = publish_unseen(served, text)
    name = served.replica(version)
    until(lambda: not served.launcher.get(name).alive)
    error = served.launcher.error(name)
    assert error.code == code
    assert said in error.message


def publish_unseen(served, text):
    """Publish sources that can't be loaded here, as if from a machine where they can."""
    import msgspec

    from argosy.registry.versions import FileRef
    from models_of_own import files

    good = publish(served, ODD)
    content = files(text)
    refs = {n: FileRef(digest=served.registry.blobs.put(data), size_bytes=len(data)) for n, data in content.items()}
    return served.registry.versions.publish(msgspec.structs.replace(good.manifest, files=refs))


def test_code_whose_signature_is_not_the_signed_one_does_not_run(served):
    name = served.replica(
        publish_unseen(served, TEXTS.replace("def load", "def unused").replace("> self.limit", "> 3"))
    )
    until(lambda: not served.launcher.get(name).alive)
    assert served.launcher.error(name).code == "signature_changed"


@pytest.mark.parametrize("which", ["model.py", "python-model.json"])
def test_a_changed_byte_of_a_source_is_not_run(served, which):
    version = publish(served, ODD)
    digest = version.manifest.files[which].digest.removeprefix("sha256:")
    path = next(p for p in (served.folder / "home").rglob(digest) if p.is_file())
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    name = served.replica(version)
    until(lambda: not served.launcher.get(name).alive)
    assert served.launcher.error(name).code == "blob_corrupt"


# With the controller -------------------------------------------------------------------------------------------------

QUICK = RolloutConfig(steps=(20, 50), dwell="1s", window="0.5s", time_limit="40s", judge=("errors",), mirror=0)


def deploy(home, version, **given):
    accepted = commands.deploy(home.registry, str(version), **given)
    home.start()
    return accepted


@pytest.mark.capability("I3", "R2")
def test_a_canary_of_python_code_that_raises_is_rolled_back(home):
    first = publish(home, CONSTANT.format(before="pass", value=1))
    second = publish(home, CONSTANT.format(before="assert (x > 0).all()", value=2))
    home.ended(deploy(home, first).rollout)
    home.serving("m:1")
    with Traffic(home) as traffic:
        last = home.ended(deploy(home, second, rollout=QUICK).rollout)
        over = time.monotonic() + 0.5
        until(lambda: len(traffic.since(over)) > 5)
    assert last.outcome == d.ROLLED_BACK
    assert last.reason.startswith("errors: ")
    assert set(traffic.since(over)) == {1.0}
    assert not [answer for answer in traffic.failed if answer[0] >= over]


@pytest.mark.capability("I3", "R7")
def test_python_versions_and_an_onnx_one_take_turns_without_a_lost_request(home):
    versions = [
        publish(home, CONSTANT.format(before="pass", value=1)),
        home.publish(constant(2.0)),
        publish(home, CONSTANT.format(before="pass", value=3)),
    ]
    home.ended(deploy(home, versions[0]).rollout)
    home.serving("m:1")
    with Traffic(home) as traffic:
        for number, version in enumerate(versions[1:], 2):
            home.ended(deploy(home, version).rollout)
            home.serving(f"m:{number}")
        # What was under way at the switch may still come from the former version.
        until(lambda: [found for _, _, found in traffic.answers[-4:]] == [3.0] * 4)
        switched = time.monotonic()
        until(lambda: len(traffic.since(switched)) > 5)
    assert traffic.failed == []
    assert set(traffic.since(switched)) == {3.0}


@pytest.mark.capability("R4")
def test_a_replica_that_outgrows_its_memory_is_replaced_and_no_request_is_lost(home):
    text = CONSTANT.format(before="self.kept.append(np.ones(1 << 12))  # 32 KiB with each batch", value=1)
    version = publish(
        home, text.replace("class Constant(argosy.Model):\n", "class Constant(argosy.Model):\n    kept = []\n\n")
    )
    home.ended(deploy(home, version, endpoint=EndpointConfig(memory="400MB")).rollout)
    home.serving("m:1")
    first = {replica.id for replica in home.client.status().replicas}
    with Traffic(home) as traffic:
        until(lambda: not first & {replica.id for replica in home.client.status().replicas}, seconds=60)
        moment = time.monotonic()
        until(lambda: len(traffic.since(moment)) > 5)
    assert traffic.failed == []
    assert "replica_outgrown" in home.launcher.log_tail("controller", 200)
