"""Logs of a training: TensorBoard's own reader reads the files, a server gets every request, and nothing ever fails."""

import json
import math
import struct
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from argosy.core.clock import FakeClock
from argosy.core.errors import InvalidInput
from argosy.core.progress import Progress
from argosy.pipeline.tracking.contract import Tracking
from argosy.pipeline.tracking.mlflow import Mlflow
from argosy.pipeline.tracking.tensorboard import TensorBoard, _checksum
from argosy.train.config import LogConfig


class Kept:
    """Remembers what it is told."""

    def __init__(self):
        self.told, self.asked, self.ended = [], None, None

    def settings(self, values):
        self.asked = dict(values)

    def log(self, step, values):
        self.told.append((step, dict(values)))

    def close(self, *, failed):
        self.ended = "failed" if failed else "finished"


def news(step, **values):
    return Progress(stage="train", message="epoch 1/2", done=step, total=10, unit="steps", values=values)


@pytest.mark.capability("T6")
def test_numbers_that_changed_are_told_once_and_news_goes_on_to_whoever_listens():
    kept, heard = Kept(), []
    tracking = Tracking([kept], heard.append)
    for one in (
        news(1, loss=2.0),
        news(2, loss=1.5, accuracy=0.5),
        news(3, loss=1.5, accuracy=0.5),
        news(4, loss=math.nan, note="words"),
        Progress(stage="train", message="rank 1 was ended by signal 9"),
    ):
        tracking(one)
    tracking.close()
    assert kept.told == [(1, {"loss": 2.0}), (2, {"loss": 1.5, "accuracy": 0.5})]
    assert len(heard) == 5
    assert kept.ended == "finished"


@pytest.mark.capability("T6")
def test_numbers_of_epochs_that_were_in_no_news_are_told_at_the_end():
    kept = Kept()
    tracking = Tracking([kept], lambda _: None)
    tracking(news(10, loss=1.0, accuracy=0.5))
    history = [{"epoch": n, "accuracy": 0.5, "f1": n / 4, "seconds": 3.0} for n in (1, 2)]
    tracking.log_rest(history, 20)
    assert kept.told[1:] == [(10, {"f1": 0.25}), (20, {"f1": 0.5})]


# --- TensorBoard ----------------------------------------------------------------------------------------------------


def records(content):
    """Read the records of a file, their checksums checked."""
    while content:
        head, content = content[:8], content[8:]
        assert content[:4] == _checksum(head)
        (size,) = struct.unpack("<Q", head)
        event = content[4 : 4 + size]
        assert content[4 + size : 8 + size] == _checksum(event)
        content = content[8 + size :]
        yield event


def test_the_checksum_is_crc_32c_with_tensorflows_mask():
    # RFC 3720, B.4: 32 bytes of zeros have the checksum 0x8A9136AA.
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert _checksum(bytes(32)) == struct.pack("<I", masked)


@pytest.mark.capability("T6")
def test_tensorboards_own_reader_finds_the_curves_and_the_settings(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator as accumulator

    log = TensorBoard(tmp_path / "runs", "run-1", FakeClock(1000.0), pytest.fail)
    log.settings({"train.epochs": 3, "model.family": "mlp"})
    for step in (1, 300, 70_000):
        log.log(step, {"loss": 1 / step, "validation_loss": 2.0})
    log.close(failed=False)
    found = accumulator.EventAccumulator(str(tmp_path / "runs"))
    found.Reload()
    assert found.Tags()["scalars"] == ["loss", "validation_loss"]
    assert [(e.step, e.wall_time) for e in found.Scalars("loss")] == [(1, 1000.0), (300, 1000.0), (70_000, 1000.0)]
    assert [e.value for e in found.Scalars("loss")] == pytest.approx([1.0, 1 / 300, 1 / 70_000], rel=1e-6)
    (text,) = found.Tensors("settings")
    assert b"| train.epochs | `3` |" in text.tensor_proto.string_val[0]


def test_a_file_is_whole_at_every_moment(tmp_path):
    log = TensorBoard(tmp_path, "run-1", FakeClock(1000.0), pytest.fail)
    log.log(5, {"loss": 0.25})
    (path,) = tmp_path.iterdir()
    first, second = records(path.read_bytes())
    assert b"brain.Event:2" in first
    assert second.endswith(b"loss" + b"\x15" + struct.pack("<f", 0.25))
    log.log(6, {"loss": 1e300})
    assert len(list(records(path.read_bytes()))) == 3
    log.close(failed=True)


def test_a_folder_that_can_not_be_written_is_told_and_the_training_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    log = TensorBoard(tmp_path / "file" / "runs", "run-1", FakeClock(1000.0), said.append)
    log.log(1, {"loss": 1.0})
    log.close(failed=False)
    (message,) = said
    assert message.startswith("no log for TensorBoard: ")


# --- MLflow ---------------------------------------------------------------------------------------------------------


@contextmanager
def server(*, knows_experiment=False, fails_at="", times=10**9):
    """A tracking server that keeps what it is asked; what it fails at it fails at so many times."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body):
            path = self.path.removeprefix("/api/2.0/mlflow/").partition("?")[0]
            asked.append((path, body))
            status, answer = 200, {}
            if path == fails_at and [path for path, _ in asked].count(fails_at) <= times:
                status = 500
            elif path == "experiments/get-by-name":
                status, answer = (200, {"experiment": {"experiment_id": "7"}}) if knows_experiment else (404, {})
            elif path == "experiments/create":
                answer = {"experiment_id": "8"}
            elif path == "runs/create":
                answer = {"run": {"info": {"run_id": "r1"}}}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.answer(None)

        def do_POST(self):
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *_):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{found.server_port}", asked
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


@pytest.mark.capability("T6")
@pytest.mark.parametrize("knows", [False, True])
def test_a_run_on_an_mlflow_server_has_settings_metrics_and_an_end(knows):
    with server(knows_experiment=knows) as (url, asked):
        log = Mlflow(f"{url}/", "digits", "digits-1", FakeClock(1000.0), pytest.fail)
        log.settings({"train.epochs": 3, "model.options": {"hidden": [4]}, "long": "x" * 900})
        log.log(10, {"loss": 0.5, "accuracy": 0.75})
        log.close(failed=False)
    paths = [path for path, _ in asked]
    started = ["experiments/get-by-name", *([] if knows else ["experiments/create"]), "runs/create"]
    assert paths == [*started, "runs/log-batch", "runs/log-batch", "runs/update"]
    bodies = [body for _, body in asked][-4:]
    assert bodies[0] == {"experiment_id": "7" if knows else "8", "run_name": "digits-1", "start_time": 1_000_000}
    assert bodies[1]["params"][:2] == [
        {"key": "train.epochs", "value": "3"},
        {"key": "model.options", "value": '{"hidden": [4]}'},
    ]
    assert len(bodies[1]["params"][2]["value"]) == 500
    assert bodies[2] == {
        "run_id": "r1",
        "metrics": [
            {"key": "loss", "value": 0.5, "timestamp": 1_000_000, "step": 10},
            {"key": "accuracy", "value": 0.75, "timestamp": 1_000_000, "step": 10},
        ],
    }
    assert bodies[3] == {"run_id": "r1", "status": "FINISHED", "end_time": 1_000_000}


def test_a_training_that_failed_is_a_run_that_failed():
    with server() as (url, asked):
        Mlflow(url, "digits", "digits-1", FakeClock(1000.0), pytest.fail).close(failed=True)
    assert asked[-1][1]["status"] == "FAILED"


@pytest.mark.parametrize("fails_at", ["experiments/get-by-name", "runs/create", "runs/log-batch"])
def test_a_server_that_fails_is_told_once_and_the_training_goes_on(fails_at):
    said = []
    with server(fails_at=fails_at) as (url, _):
        log = Mlflow(url, "digits", "digits-1", FakeClock(1000.0), said.append)
        for step in range(2000):
            log.log(step, {"loss": 1.0})
        log.close(failed=False)
    assert said == [f"no log in MLflow: '{url}' can't be used (it answered 500)"]


def test_a_server_that_is_busy_for_a_moment_is_asked_again():
    with server(fails_at="runs/log-batch", times=2) as (url, asked):
        log = Mlflow(url, "digits", "digits-1", FakeClock(1000.0), pytest.fail)
        log.log(1, {"loss": 1.0})
        log.close(failed=False)
    assert [path for path, _ in asked][-4:] == ["runs/log-batch"] * 3 + ["runs/update"]


def test_a_server_that_is_not_there_is_told():
    said = []
    log = Mlflow("http://127.0.0.1:9", "digits", "digits-1", FakeClock(1000.0), said.append)
    log.log(1, {"loss": 1.0})
    log.close(failed=False)
    assert len(said) == 1


@pytest.mark.parametrize("address", ["localhost:5000", "file:///etc/passwd", "http://", "http://user:secret@host"])
def test_an_address_that_is_none_is_refused_before_anything_runs(address):
    with pytest.raises(InvalidInput, match="is not the address of a server"):
        LogConfig(mlflow=address).check()
