"""Profiles outlive processes, and damaged or foreign ones count as none."""

import json
import os

import msgspec
import pytest

from argosy.serve.host import free_memory, host_key, this_host, usable_cores, worked_s
from argosy.serve.profile import FORMAT, Batching, Host, Point, Profile, Shape, encode
from argosy.serve.profile_store import ProfileStore

VERSION = "sha256:" + "12" * 32
HOST = Host(cpu="some", cores=4, memory_bytes=1 << 34, runtime="onnxruntime 1.2.3")


def make(**changes):
    return Profile(
        **{
            "version": VERSION,
            "host": HOST,
            "measured": 1.8e9,
            "took_s": 1.5,
            "batching": {1: Batching(max_batch=8, run_s=0.02, row_s=0.004, max_bytes=900, spare=20.5, padding=1.05)},
            "replicas": 4,
            "threads": 1,
            "alone": 4,
            "most": 9,
            "solo": 2,
            "memory_bytes": 1 << 28,
            "points": (Point(rows=8, length_bytes=48, seconds=0.02),),
            "shapes": (Shape(replicas=1, threads=1, rows_s=300.0, row_s=0.004),),
            "reasons": ("because",),
        }
        | changes
    )


@pytest.fixture
def store(tmp_path):
    return ProfileStore(tmp_path, HOST)


def files(store):
    return [path for path in store.folder.iterdir() if path.suffix == ".json"]


def test_what_is_kept_is_read_again_by_another_process(store, tmp_path):
    assert store.read(VERSION) is None
    before = store.stamp(VERSION)
    assert store.keep(make()) == make()
    assert ProfileStore(tmp_path, HOST).read(VERSION) == make()
    assert store.stamp(VERSION) != before


def test_writing_again_is_noticed_and_keeps_what_was_known_of_other_threads(store):
    store.keep(make(batching={1: Batching(max_batch=8), 4: Batching(max_batch=2)}))
    before = store.stamp(VERSION)
    store.keep(make(batching={1: Batching(max_batch=16)}))
    assert store.stamp(VERSION) != before
    found = store.read(VERSION).batching
    assert (found[1].max_batch, found[4].max_batch) == (16, 2)


@pytest.mark.parametrize(
    "change", [{"cpu": "other"}, {"cores": 2}, {"memory_bytes": 1 << 33}, {"runtime": "onnxruntime 1.2.4"}]
)
def test_another_machine_or_runtime_measures_for_itself(store, tmp_path, change):
    store.keep(make())
    other = ProfileStore(tmp_path, msgspec.structs.replace(HOST, **change))
    assert other.read(VERSION) is None
    other.keep(make(host=other.host, replicas=2))
    assert (store.read(VERSION).replicas, other.read(VERSION).replicas) == (4, 2)
    # Also where the file was brought here under this machine's name.
    (mine,) = [path for path in files(store) if host_key(HOST) in path.name]
    (theirs,) = [path for path in files(store) if path != mine]
    mine.write_bytes(theirs.read_bytes())
    assert store.read(VERSION) is None


def test_a_profile_of_another_version_is_not_taken_for_this_one(store):
    store.keep(make())
    (path,) = files(store)
    other = "sha256:" + "34" * 32
    path.rename(path.with_name(path.name.replace("12" * 32, "34" * 32)))
    assert store.read(other) is None
    assert store.read(VERSION) is None


def test_whatever_is_cut_off_or_flipped_a_damaged_file_is_none_or_says_nothing_impossible(store):
    store.keep(make())
    (path,) = files(store)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:size])
        assert store.read(VERSION) is None
    for at in range(0, len(whole), 3):
        data = bytearray(whole)
        data[at] ^= 0x11
        path.write_bytes(data)
        found = store.read(VERSION)
        assert found is None or (1 <= found.replicas <= found.most and all(b.check() for b in found.batching.values()))


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 0}, {"replicas": 10}, {"threads": 0}, {"threads": 1e9}, {"alone": -1}, {"batching": {}},
        {"format": FORMAT + 1}, {"format": FORMAT - 1}, {"batching": {"1": {"max_batch": 0}}},
        {"batching": {"1": {"max_batch": 10**9}}}, {"batching": {"0": {}}}, {"batching": {"1": {"padding": 0.5}}},
        {"batching": {"1": {"run_s": -1}}}, {"batching": {"1": {"spare": 1e300}}}, {"unknown": 1}, {"host": None},
    ],
)  # fmt: skip
def test_what_is_impossible_is_not_believed(store, change):
    store.keep(make())
    (path,) = files(store)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    assert store.read(VERSION) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff" * 100, b"[" * 100_000, b" " * (2 << 20)])
def test_what_is_no_profile_at_all_is_none(store, content):
    store.keep(make())
    (path,) = files(store)
    path.write_bytes(content)
    assert store.read(VERSION) is None


def test_a_link_in_the_place_of_a_profile_is_not_followed(store, tmp_path):
    store.keep(make())
    (path,) = files(store)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(encode(make()))
    path.unlink()
    path.symlink_to(elsewhere)
    assert store.read(VERSION) is None


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(store):
    store.folder.mkdir(parents=True)
    store.folder.chmod(0o500)
    assert store.keep(make()) is None


def test_a_file_in_the_place_of_the_folder_is_no_reason_to_fail(tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    store = ProfileStore(tmp_path, HOST)
    assert store.keep(make()) is None
    assert store.read(VERSION) is None
    assert store.stamp(VERSION) == (0, 0)


def test_one_process_of_a_home_measures_at_a_time(store, tmp_path):
    first, second = store.lock(), ProfileStore(tmp_path, HOST).lock()
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()


# The machine ----------------------------------------------------------------------------------------------------------

CPUINFO = """processor\t: 0
model name\t: Some CPU
cpu family\t: 6
model\t: 85
stepping\t: 7
flags\t: {}

processor\t: 1
"""


@pytest.fixture
def machine(tmp_path):
    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    write(
        {
            "proc/cpuinfo": CPUINFO.format("avx2 fma"),
            "proc/meminfo": "MemTotal:       16384000 kB\nMemAvailable:    8192000 kB\n",
            "proc/stat": "cpu  100 10 50 9000 30 5 5 200 0 0\ncpu0 1 1 1 1\n",
        }
    )
    write.root = tmp_path
    return write


def test_this_machine_has_a_name_that_does_not_change():
    assert this_host() == this_host()
    assert this_host().cores >= 1
    assert this_host().memory_bytes > 0
    assert this_host().runtime.startswith("onnxruntime 1.")


def test_other_instruction_sets_make_another_machine(machine):
    before = this_host(machine.root)
    machine({"proc/cpuinfo": CPUINFO.format("avx2 fma avx512_vnni")})
    after = this_host(machine.root)
    assert before.cpu.startswith("Some CPU, cpu family 6, model 85, stepping 7")
    assert before != after
    assert host_key(before) != host_key(after)


def test_some_pages_more_or_less_are_the_same_machine(machine):
    before = this_host(machine.root)
    machine({"proc/meminfo": "MemTotal:       16383000 kB\nMemAvailable:    1 kB\n"})
    assert this_host(machine.root) == before


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("150000 100000", 1)]
)
def test_the_quota_of_a_container_counts(machine, quota, cores):
    root = machine({"proc/self/cgroup": "0::/some/pod\n", "sys/fs/cgroup/some/pod/cpu.max": quota})
    assert usable_cores(root) == (cores or len(os.sched_getaffinity(0)))


def test_the_former_kind_of_control_groups_counts_too(machine):
    former = "sys/fs/cgroup/cpu/cpu.cfs_"
    root = machine({f"{former}quota_us": "100000", f"{former}period_us": "100000"})
    assert usable_cores(root) == 1
    machine({f"{former}quota_us": "-1"})
    assert usable_cores(root) == len(os.sched_getaffinity(0))


def test_the_memory_of_a_container_counts(machine):
    root = machine({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{1 << 30}\n"})
    machine({"sys/fs/cgroup/memory.current": f"{1 << 29}\n"})
    assert this_host(root).memory_bytes == 1 << 30
    assert free_memory(root) == 1 << 29
    machine({"sys/fs/cgroup/memory.max": "max\n"})
    assert free_memory(root) == 8192000 * 1024


def test_time_that_the_host_of_a_virtual_machine_takes_counts_as_work(machine):
    assert worked_s(machine.root) == 370 / os.sysconf("SC_CLK_TCK")


def test_a_system_that_says_nothing_has_a_name_too(tmp_path):
    found = this_host(tmp_path)
    assert (found.cpu.split(",")[0], found.memory_bytes) == ("unknown", 0)
    assert free_memory(tmp_path) == 0
    assert worked_s(tmp_path) == 0
