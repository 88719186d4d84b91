"""What the monitor tells of runs under way: read from the files by which stages tell their runs how far they are."""

import json
from types import SimpleNamespace

import pytest

from argosy.core.clock import FakeClock
from argosy.core.files import FileLock
from argosy.core.metrics import METRICS
from argosy.monitoring.host import (
    MOST_RUNNING,
    RunCounts,
    host_samples,
    process_samples,
    running_stages,
    stage_samples,
)
from argosy.operate.memory import FakeLog


def stage(home, name, lines, *, held=True):
    folder = home / "work" / name
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines))
    lock = FileLock(folder.with_suffix(".lock"))
    assert lock.acquire()
    if not held:
        lock.release()
    return lock


def line(**news):
    return json.dumps({"stage": "train"} | news).encode() + b"\n"


def samples(home):
    return {(name, *labels): value for name, labels, value in stage_samples(running_stages(home))}


def test_a_training_shows_how_far_it_is_by_its_last_whole_line(tmp_path):
    lock = stage(
        tmp_path,
        "train-abc",
        [
            line(message="reading"),
            line(
                done=10, total=40, unit="steps", left_s=6.0, values={"loss": 0.5, "samples_per_s": 100.0, "note": "x"}
            ),
            line(message="half way", is_note=True),
            b'{"stage": "train", "done": 30, "tot',
        ],
    )
    assert samples(tmp_path) == {
        ("argosy_training_loss", "0"): 0.5,
        ("argosy_training_samples_per_second", "0"): 100.0,
        ("argosy_training_step", "0"): 10.0,
        ("argosy_stages_running", "train"): 1.0,
        ("argosy_stage_done_ratio", "train"): 0.25,
        ("argosy_stage_left_seconds", "train"): 6.0,
    }
    lock.release()
    assert samples(tmp_path) == {}, "nobody holds its lock, so it does not run"


def test_what_a_killed_run_left_and_files_of_nonsense_are_no_stages(tmp_path):
    stage(tmp_path, "train-dead", [line(done=1, total=2)], held=False)
    locks = [stage(tmp_path, "convert-1", [b"\xff\x00nonsense\n[]\n"])]
    assert samples(tmp_path) == {("argosy_stages_running", "convert"): 1.0}
    assert len(locks) == 1


def test_many_runs_are_bounded_and_only_the_end_of_long_files_is_read(tmp_path):
    long = [line(message="x" * 100) for _ in range(20_000)]
    locks = [stage(tmp_path, "train-000", [*long, line(done=3, total=4)])]
    locks += [stage(tmp_path, f"train-{n + 1:03}", [line(done=n, total=100)]) for n in range(MOST_RUNNING + 10)]
    found = samples(tmp_path)
    assert found["argosy_stages_running", "train"] == MOST_RUNNING
    assert found["argosy_stage_done_ratio", "train"] == 0.0
    assert len(locks) > MOST_RUNNING


def test_runs_are_counted_from_the_log_so_a_restart_changes_nothing():
    log = FakeLog([], FakeClock())
    counts = RunCounts()
    for name in ("data", "train", "train"):
        log.append("stage.finished", f"key-{name}", {"stage": name})
    log.append("run.started", "run-1", {})
    expected = [
        ("argosy_stages_finished_total", ("data",), 1.0),
        ("argosy_stages_finished_total", ("train",), 2.0),
        ("argosy_runs_started_total", (), 1.0),
    ]
    assert counts.samples(log) == counts.samples(log) == RunCounts().samples(log) == expected


@pytest.mark.capability("M1")
def test_the_machine_and_its_processes_stand_there(tmp_path):
    infos = [
        SimpleNamespace(role="replica", alive=True, memory_bytes=5),
        SimpleNamespace(role="replica", alive=True, memory_bytes=7),
        SimpleNamespace(role="replica", alive=False, memory_bytes=0),
    ]
    found = {(name, *labels): value for name, labels, value in (*host_samples(tmp_path), *process_samples(infos))}
    assert found["argosy_processes", "replica"] == 2
    assert found["argosy_process_memory_bytes", "replica"] == 12
    assert 0 < found["argosy_host_memory_free_bytes",] <= found["argosy_host_memory_bytes",]
    assert found["argosy_host_cpu_cores",] >= 1
    assert found["argosy_host_cpu_seconds_total",] > 0
    assert found["argosy_host_disk_free_bytes",] > 0
    assert {name for name, *_ in found} <= {name for name, metric in METRICS.items() if metric.part == "monitor"}
