import itertools
import math
import os
import threading

import pytest

from argosy.core.clock import FakeClock
from argosy.core.errors import Conflict, Denied, IntegrityError, InvalidInput, Unavailable
from argosy.registry.backends.disk import DiskStore
from argosy.registry.backends.memory import MemoryStore
from argosy.registry.entries import entry_key
from argosy.registry.log import Log
from argosy.registry.packs import PACK, pack_key
from argosy.security.keys import KeyRing
from logs import SEED, CountingStore, FaultyStore, ReadOnlyStore, bad_entry, filled, make_log

pytestmark = pytest.mark.capability("V3")


@pytest.fixture
def store():
    return MemoryStore()


def test_an_entry_is_numbered_chained_signed_and_found_again(store, tmp_path):
    log = make_log(store, tmp_path)
    assert log.head == 0
    one = log.append("thing.happened", "a", {"n": 1})
    two = log.append("thing.happened", "b", {"n": [1.5, None, "ü", {"k": True}]})
    assert (one.seq, two.seq, log.head) == (2, 3, 3)
    assert two.prev == one.hash
    assert log.head_hash == two.hash
    assert two.actor == "ada"
    assert [entry.kind for entry in log.entries()] == ["log.created", "thing.happened", "thing.happened"]
    assert make_log(store, tmp_path / "other").last("thing.happened", "b") == two


def test_reading_an_empty_store_writes_nothing(tmp_path):
    log = make_log(ReadOnlyStore(), tmp_path)
    assert log.refresh() == 0
    assert list(log.entries()) == []
    assert log.last("a", "b") is None
    assert log.verify().entries == 0


def test_entries_are_filtered_and_bounded(store, tmp_path):
    log = filled(store, tmp_path, 300)
    assert [e.seq for e in log.entries(after=290)] == list(range(291, 301))
    assert len(list(log.entries(kind="thing.happened"))) == 299
    assert {e.subject for e in log.entries(subject="thing-3")} == {"thing-3"}
    assert [e.data["number"] for e in log.entries(kind="thing.happened", subject="thing-3", after=290)] == [293, 298]
    assert list(log.entries(kind="nothing")) == []
    assert log.last("thing.happened", "thing-3").data["number"] == 298
    assert log.last("thing.happened", "nothing") is None


def test_a_log_shows_what_it_read_and_refresh_shows_the_rest(store, tmp_path):
    one, two = filled(store, tmp_path, 3), make_log(store, tmp_path / "two")
    assert two.head == 3
    one.append("more", "x", {})
    assert two.head == 3
    assert two.last("more", "x") is None
    assert two.refresh() == 4
    assert two.last("more", "x").seq == 4


def test_a_check_sees_everything_written_before_its_entry(store, tmp_path):
    one, two = make_log(store, tmp_path / "one"), make_log(store, tmp_path / "two")
    one.append("seat.taken", "1", {})
    two.refresh()
    one.append("seat.taken", "2", {})

    def free(log):
        if log.last("seat.taken", "2"):
            raise Conflict("seat 2 is taken")

    with pytest.raises(Conflict, match="seat 2"):
        two.append("seat.taken", "2", {}, check=free)
    assert two.head == 3


def test_the_loser_of_a_race_checks_again_before_it_writes(store, tmp_path):
    log, rival = make_log(store, tmp_path / "one"), make_log(store, tmp_path / "two")
    log.append("start", "", {})
    seen = []

    def check(checked):
        seen.append(checked.head)
        if len(seen) == 1:
            rival.append("faster", "", {})

    entry = log.append("slower", "", lambda checked: {"behind": checked.head}, check=check)
    assert seen == [2, 3]
    assert (entry.seq, entry.data) == (4, {"behind": 3})


def test_twins_with_the_same_key_at_the_same_moment_never_take_each_others_entry_for_theirs(store, tmp_path):
    # Same key, same clock, same words: only the nonce tells them apart.
    log, twin = make_log(store, tmp_path / "one"), make_log(store, tmp_path / "two")
    log.append("start", "", {})
    twins = []

    def check(_):
        if not twins:
            twins.append(twin.append("elected", "controller", {"epoch": 1}))

    entry = log.append("elected", "controller", {"epoch": 1}, check=check)
    assert entry.seq == twins[0].seq + 1


def test_a_race_that_is_lost_for_ever_ends_with_an_error(store, tmp_path, monkeypatch):
    class Taken(FaultyStore):
        def create(self, key, data):
            raise Conflict("taken")

    make_log(store, tmp_path).append("start", "", {})
    monkeypatch.setattr("argosy.registry.log._MOST_RACES", 20)
    with pytest.raises(Unavailable) as caught:
        make_log(Taken(store), tmp_path).append("x", "", {})
    assert caught.value.code == "log_busy"


def test_an_answer_that_was_lost_on_the_way_is_not_written_twice(tmp_path):
    store = FaultyStore()
    log = make_log(store, tmp_path)
    log.append("start", "", {})
    # The client below retries on its own and then meets the object it had written.
    store.after = [Conflict("exists")]
    entry = log.append("once", "", {})
    assert entry.seq == 3
    assert [e.kind for e in log.entries()] == ["log.created", "start", "once"]


def test_a_full_disk_writes_nothing_and_the_next_append_succeeds(tmp_path):
    store = FaultyStore()
    log = make_log(store, tmp_path)
    log.append("start", "", {})
    store.before = [Unavailable("no space left", code="disk_full")]
    with pytest.raises(Unavailable):
        log.append("x", "", {})
    assert log.refresh() == 2
    assert log.append("x", "", {}).seq == 3
    assert log.verify().entries == 3


@pytest.mark.parametrize(
    "data",
    [{"x": object()}, {"x": 2**70}, {"x": "\ud800"}, {"x": b"bytes" * 300_000}, {1: 2, "1": 3}, {"x": {1, 2}}],
    ids=["object", "huge number", "lone surrogate", "too large", "two keys that become one", "set"],
)
def test_data_that_could_not_be_read_back_is_never_written(store, tmp_path, data):
    log = make_log(store, tmp_path)
    log.append("start", "", {})
    try:
        entry = log.append("x", "", data)
    except InvalidInput:
        assert log.refresh() == 2
    else:
        assert entry == make_log(store, tmp_path / "other").last("x", "")
    assert log.verify()


def test_what_append_returns_is_what_readers_get(store, tmp_path):
    log = make_log(store, tmp_path)
    entry = log.append("x", "", {"tuple": (1, 2), "nan": math.nan, "zero": -0.0, "tiny": 5e-324, "text": "\u2028\x00"})
    assert entry.data["tuple"] == [1, 2]
    assert entry == make_log(store, tmp_path / "other").last("x", "")


def test_reserved_kinds_are_refused(store, tmp_path):
    log = make_log(store, tmp_path)
    with pytest.raises(InvalidInput):
        log.append("log.created", "", {})
    with pytest.raises(IntegrityError):
        log.append("key.trusted", "", {"key": "x"})
    log.append("x", "", {})
    assert log.verify().entries == 2


def test_threads_may_share_a_log(store, tmp_path):
    log = make_log(store, tmp_path)

    def write(name):
        for number in range(10):
            log.append("x", name, {"n": number})

    threads = [threading.Thread(target=write, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.verify().entries == 41
    assert [e.data["n"] for e in log.entries(subject="2")] == list(range(10))


# ---- cost


def test_looking_for_news_is_one_look_when_there_is_none(tmp_path):
    store = CountingStore()
    log = filled(store, tmp_path, 20)
    log.refresh()
    store.asked.clear()
    log.refresh()
    assert store.asked == [entry_key(21)]


def test_opening_with_an_index_reads_two_objects_however_long_the_log_is(tmp_path):
    store = CountingStore()
    filled(store, tmp_path, 60).close()
    store.asked.clear()
    log = make_log(store, tmp_path)
    assert log.head == 60
    assert store.asked == [entry_key(60), entry_key(61)]
    assert log.append("x", "", {}).seq == 61


def test_a_first_opening_reads_packs(tmp_path):
    store = CountingStore()
    filled(store, tmp_path, 2 * PACK + 6)
    assert list(store.list("log/packs/")) == [pack_key(PACK * n) for n in (1, 2)]
    store.asked.clear()
    assert make_log(store, tmp_path / "new").head == 2 * PACK + 6
    assert len(store.asked) < 16


def test_a_pack_whose_writer_was_killed_is_written_with_the_next(store, tmp_path):
    log = filled(store, tmp_path, PACK)
    store.delete(pack_key(PACK))
    for number in range(PACK):
        log.append("x", "", {"n": number})
    assert store.exists(pack_key(PACK))
    assert log.verify().packs == 2


def test_a_pack_that_cannot_be_written_does_not_fail_the_append(tmp_path):
    store = FaultyStore()
    log = filled(store, tmp_path, PACK - 1)

    class Full(FaultyStore):
        def create(self, key, data):
            if "packs" in key:
                raise Unavailable("no space left", code="disk_full")
            super().create(key, data)

    log = make_log(Full(store), tmp_path)
    assert log.append("x", "", {}).seq == PACK
    assert log.verify().packs == 0


# ---- the index


def test_a_deleted_index_is_made_again(store, tmp_path):
    log = filled(store, tmp_path, 30)
    expected = [e.hash for e in log.entries()]
    log.close()
    for path in (tmp_path / "index").iterdir():
        path.unlink()
    assert [e.hash for e in make_log(store, tmp_path).entries()] == expected


def test_an_index_deleted_under_a_running_process_is_not_missed(store, tmp_path):
    log = filled(store, tmp_path, 30)
    for path in (tmp_path / "index").iterdir():
        path.unlink()
    other = make_log(store, tmp_path)
    assert other.append("x", "a", {}).seq == 31
    assert log.append("x", "b", {}).seq == 32
    assert len(list(log.entries())) == 32
    assert len(list(make_log(store, tmp_path).entries())) == 32


def test_an_index_emptied_under_a_running_process_is_filled_again(store, tmp_path):
    import sqlite3

    log = filled(store, tmp_path, 30)
    with sqlite3.connect(tmp_path / "index" / "log.sqlite") as db:
        db.execute("DELETE FROM entries WHERE seq > 10")
    db.close()
    assert log.append("x", "", {}).seq == 31
    assert [e.seq for e in log.entries()] == list(range(1, 32))


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "folder", "other schema", "older version"])
def test_a_damaged_index_is_made_again_silently(store, tmp_path, damage):
    import sqlite3

    filled(store, tmp_path, 30).close()
    path = tmp_path / "index" / "log.sqlite"
    if damage == "garbage":
        path.write_bytes(os.urandom(50_000))
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        db = sqlite3.connect(path)
        db.executescript("DROP TABLE entries" if damage == "other schema" else "PRAGMA user_version = 99")
        db.close()
    log = make_log(store, tmp_path)
    assert [e.seq for e in log.entries()] == list(range(1, 31))
    assert log.append("x", "", {}).seq == 31
    assert log.verify().entries == 31


def test_a_changed_row_of_the_index_is_never_believed(store, tmp_path):
    import sqlite3

    log = filled(store, tmp_path, 50)
    expected = list(log.entries())
    db = sqlite3.connect(tmp_path / "index" / "log.sqlite")
    db.execute("UPDATE entries SET raw = replace(raw, 'thing', 'think') WHERE seq = 20")
    db.commit()
    db.close()
    assert list(log.entries()) == expected


def test_verify_replaces_an_index_that_differs(store, tmp_path):
    import sqlite3

    log = filled(store, tmp_path, 50)
    db = sqlite3.connect(tmp_path / "index" / "log.sqlite")
    db.execute("UPDATE entries SET hash = 'sha256:' || hash WHERE seq = 20")
    db.commit()
    db.close()
    assert log.verify().entries == 50
    assert [e.seq for e in log.entries()] == list(range(1, 51))


def test_an_index_of_another_log_is_not_mixed_in(tmp_path):
    filled(MemoryStore(), tmp_path, 30).close()
    (tmp_path / "seen.head").unlink()
    log = filled(MemoryStore(), tmp_path, 10)
    assert [e.seq for e in log.entries()] == list(range(1, 11))


def test_a_home_that_cannot_be_written_still_reads_and_writes(store, tmp_path):
    filled(store, tmp_path / "a", 20)
    (tmp_path / "file").write_text("not a folder")
    log = make_log(store, tmp_path / "file")
    assert log.head == 20
    assert len(list(log.entries())) == 20
    assert log.append("x", "", {}).seq == 21
    assert log.verify().entries == 21


# ---- memory


def test_a_log_that_was_cut_off_is_noticed_though_what_is_left_is_whole(store, tmp_path):
    log = filled(store, tmp_path, 10)
    for seq in (9, 10):
        store.delete(entry_key(seq))
    assert bad_entry(log.verify) == 9
    again = make_log(store, tmp_path)
    assert bad_entry(again.refresh) == 9
    assert bad_entry(again.verify) == 9
    assert bad_entry(lambda: again.append("x", "", {})) == 9
    for path in (tmp_path / "index").iterdir():
        path.unlink()
    assert bad_entry(make_log(store, tmp_path).refresh) == 9


def test_an_emptied_store_is_noticed_and_nothing_new_is_begun_in_it(store, tmp_path):
    filled(store, tmp_path, 5)
    empty = MemoryStore()
    log = make_log(empty, tmp_path)
    assert bad_entry(lambda: log.append("x", "", {})) == 1
    assert list(empty.list("")) == []


def test_a_log_replaced_by_another_is_noticed(tmp_path):
    filled(MemoryStore(), tmp_path, 5)
    other = MemoryStore()
    filled(other, tmp_path / "other", 9)
    log = make_log(other, tmp_path)
    assert bad_entry(log.refresh) == 1
    assert bad_entry(log.verify) == 1


def test_history_rewritten_by_somebody_with_the_key_is_noticed_and_the_place_named(store, tmp_path):
    log = filled(store, tmp_path, 20)
    kept = {key: store.get(key) for key in store.list("log/")}
    for seq in range(12, 21):
        store.delete(entry_key(seq))
    rewriter = make_log(store, tmp_path / "rewriter")
    for _ in range(15):
        rewriter.append("thing.invented", "x", {})
    assert bad_entry(log.verify) == 12
    assert bad_entry(make_log(store, tmp_path).refresh) == 20
    for key, raw in kept.items():
        store.put(key, raw)
    for seq in range(21, 27):
        store.delete(entry_key(seq))
    assert make_log(store, tmp_path).verify().entries == 20


def test_the_memory_never_goes_back(store, tmp_path):
    log = filled(store, tmp_path, 5)
    behind = make_log(store, tmp_path)
    behind.refresh()
    log.append("x", "", {})
    log.append("x", "", {})
    behind.refresh()
    assert (tmp_path / "seen.head").read_text().startswith(f"{7:020d} ")


def test_a_damaged_memory_is_started_again(store, tmp_path):
    filled(store, tmp_path, 5)
    (tmp_path / "seen.head").write_bytes(b"nonsense")
    assert make_log(store, tmp_path).append("x", "", {}).seq == 6
    assert (tmp_path / "seen.head").read_text().startswith(f"{6:020d} ")


# ---- many writers


def test_a_stranger_may_read_a_log_and_pins_its_key_but_may_not_write(store, tmp_path):
    filled(store, tmp_path / "creator", 5)
    keys = KeyRing.open(tmp_path / "stranger")
    log = make_log(store, tmp_path / "stranger", keys=keys)
    assert log.refresh() == 5
    assert KeyRing.in_memory(SEED).key_id in KeyRing.open(tmp_path / "stranger").trusted()
    with pytest.raises(Denied) as caught:
        log.append("x", "", {})
    assert caught.value.code == "key_not_admitted"
    assert "argosy keys trust argosy-ed25519:" in caught.value.hint
    assert store.exists(entry_key(5))
    assert not store.exists(entry_key(6))


def test_an_admitted_writer_is_accepted_by_everybody_and_may_admit_others(store, tmp_path):
    creator = filled(store, tmp_path / "creator", 5)
    second, third = KeyRing.in_memory(), KeyRing.in_memory()
    creator.trust(second.public_key)
    writer = make_log(store, tmp_path / "second", keys=second)
    writer.append("x", "", {})
    writer.trust(third.public_key)
    last = make_log(store, tmp_path / "third", keys=third).append("x", "", {})
    assert creator.refresh() == last.seq == 9
    assert len(creator.admitted()) == 3
    assert creator.verify().keys == creator.admitted()
    reopened = make_log(store, tmp_path / "creator")
    assert reopened.append("x", "", {}).seq == 10
    with pytest.raises(Conflict):
        creator.trust(second.public_key)


def test_an_entry_by_a_key_nobody_admitted_is_refused_by_every_reader(store, tmp_path):
    log = filled(store, tmp_path / "creator", 5)
    forger = KeyRing.in_memory()
    forged = Log(store, forger, FakeClock(), "eve", tmp_path / "eve" / "x.sqlite")
    forged.refresh()
    forged._chain.admitted[forger.key_id] = forger.public_key
    forged._write("x", "", {})
    assert store.exists(entry_key(6))
    assert bad_entry(log.refresh) == 6
    assert bad_entry(log.verify) == 6
    assert bad_entry(make_log(store, tmp_path / "new").refresh) == 6


def test_two_that_create_a_log_at_once_share_one_and_the_later_key_is_told_so(store, tmp_path):
    first = make_log(store, tmp_path / "one")
    second = make_log(store, tmp_path / "two", keys=KeyRing.in_memory())
    assert second.refresh() == 0
    first.append("x", "", {})
    with pytest.raises(Denied):
        second.append("x", "", {})
    assert make_log(store, tmp_path / "three").verify().entries == 2


def test_a_reader_without_write_access_reads_verifies_and_keeps_an_index(store, tmp_path):
    filled(store, tmp_path / "writer", 30)
    log = make_log(ReadOnlyStore(store), tmp_path / "reader", keys=KeyRing.open(tmp_path / "reader"))
    assert log.refresh() == 30
    assert log.verify().entries == 30
    assert not (tmp_path / "reader" / "keys" / "ed25519.key").exists()


def test_the_disk_keeps_a_log_as_plain_files(tmp_path):
    log = filled(DiskStore(tmp_path / "store"), tmp_path, 3)
    files = sorted(path.name for path in (tmp_path / "store" / "log").iterdir())
    assert files == [f"{seq:020d}.json" for seq in (1, 2, 3)]
    log.append("x", "", {})
    assert log.verify().entries == 4


def test_the_nonce_and_the_clock_are_injected(store, tmp_path):
    counter = itertools.count()
    log = Log(
        store, KeyRing.in_memory(SEED), FakeClock(5.0), "a", tmp_path / "i.sqlite", nonce=lambda: f"n{next(counter)}"
    )
    entry = log.append("x", "", {})
    assert (entry.time, entry.nonce) == (5.0, "n1")
