"""Whatever is done to the objects of a log, the first entry that is not what it was is named."""

import base64
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from argosy.core.errors import IntegrityError
from argosy.registry.backends.memory import MemoryStore
from argosy.registry.entries import Chain, entry_key
from argosy.registry.packs import PACK, pack_key
from logs import bad_entry, filled, make_log

pytestmark = [pytest.mark.capability("V3"), pytest.mark.capability("V4")]
LENGTH = PACK + 4


@pytest.fixture(scope="module")
def whole():
    """The objects of a log that has a pack."""
    store = MemoryStore()
    with tempfile.TemporaryDirectory() as home:
        filled(store, Path(home), LENGTH).close()
    return {key: store.get(key) for key in store.list("")}


def verify(objects):
    """Verify a log by somebody who sees it for the first time, so that only the log itself can speak."""
    store = MemoryStore()
    for key, data in objects.items():
        store.put(key, data)
    with tempfile.TemporaryDirectory() as home:
        log = make_log(store, Path(home))
        try:
            return log.verify()
        finally:
            log.close()


def first_bad(objects):
    return bad_entry(lambda: verify(objects))


def test_a_log_that_nobody_touched_is_whole(whole):
    report = verify(whole)
    assert (report.entries, report.packs) == (LENGTH, 1)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_changed_byte_of_any_entry_is_named(whole, data):
    # A short log is enough: what is checked at an entry depends on the one before it alone.
    seq = data.draw(st.integers(1, 6))
    raw = whole[entry_key(seq)]
    position = data.draw(st.integers(0, len(raw) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != raw[position]))
    objects = {entry_key(n): whole[entry_key(n)] for n in range(1, 7)}
    objects[entry_key(seq)] = raw[:position] + bytes([value]) + raw[position + 1 :]
    assert first_bad(objects) == seq


def test_another_spelling_of_the_last_entrys_signature_is_named(whole):
    """No later entry holds its hash, and base64 leaves four bits of a signature's last letter unused."""
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    objects = {entry_key(n): whole[entry_key(n)] for n in range(1, 7)}
    raw = objects[entry_key(6)]
    position = raw.index(b'=="') - 1
    other = letters[letters.index(raw[position]) ^ 1]
    objects[entry_key(6)] = raw[:position] + bytes([other]) + raw[position + 1 :]
    assert first_bad(objects) == 6


@given(st.integers(1, 6), st.data())
@settings(max_examples=40, deadline=None)
def test_any_removed_or_added_byte_is_named(whole, seq, data):
    raw = whole[entry_key(seq)]
    position = data.draw(st.integers(0, len(raw) - 1))
    added = data.draw(st.binary(max_size=3))
    changed = raw[:position] + added + raw[position + (not added) :]
    if changed == raw:
        return
    objects = {entry_key(n): whole[entry_key(n)] for n in range(1, 7)}
    objects[entry_key(seq)] = changed
    assert first_bad(objects) == seq


def test_every_single_byte_of_an_entry_counts(whole):
    # The property above, exhaustively for one entry, against the rules alone.
    chain = Chain()
    chain.accept(whole[entry_key(1)])
    raw = whole[entry_key(2)]
    for position in range(len(raw)):
        for value in (raw[position] ^ 0x01, raw[position] ^ 0x20, ord(" ")):
            if value != raw[position]:
                with pytest.raises(IntegrityError):
                    chain.copy().accept(raw[:position] + bytes([value]) + raw[position + 1 :])
    chain.accept(raw)


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_any_changed_byte_of_a_pack_is_named(whole, data):
    pack = whole[pack_key(PACK)]
    position = data.draw(st.integers(0, len(pack) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != pack[position]))
    objects = {**whole, pack_key(PACK): pack[:position] + bytes([value]) + pack[position + 1 :]}
    assert first_bad(objects) == pack[:position].count(b"\n") + 1


@given(st.integers(1, LENGTH), st.integers(1, LENGTH))
@settings(max_examples=15, deadline=None)
@example(1, 2)
@example(LENGTH - 1, LENGTH)
def test_two_exchanged_entries_are_named_at_the_first(whole, one, other):
    if one == other:
        return
    objects = {**whole}
    objects[entry_key(one)], objects[entry_key(other)] = whole[entry_key(other)], whole[entry_key(one)]
    assert first_bad(objects) == min(one, other)


@given(st.integers(1, LENGTH - 1))
@settings(max_examples=15, deadline=None)
@example(1)
@example(PACK)
@example(LENGTH - 1)
def test_a_removed_entry_is_named_with_no_memory_at_all(whole, seq):
    objects = {key: data for key, data in whole.items() if key != entry_key(seq)}
    assert first_bad(objects) == seq


@given(st.integers(1, LENGTH - 1))
@settings(max_examples=10, deadline=None)
def test_an_entry_removed_by_moving_the_rest_up_is_named(whole, seq):
    objects = {key: data for key, data in whole.items() if "packs" not in key}
    for later in range(seq, LENGTH):
        objects[entry_key(later)] = whole[entry_key(later + 1)]
    del objects[entry_key(LENGTH)]
    assert first_bad(objects) == seq


def test_entries_cut_off_below_a_pack_are_named_by_the_pack(whole):
    objects = {key: data for key, data in whole.items() if key <= entry_key(99) or "packs" in key}
    assert first_bad(objects) == 100


def test_a_pack_that_is_longer_or_shorter_is_found(whole):
    pack = whole[pack_key(PACK)]
    lines = pack.splitlines(keepends=True)
    assert first_bad({**whole, pack_key(PACK): pack + b"\n"}) == PACK
    assert first_bad({**whole, pack_key(PACK): b"".join(lines[:-1])}) == PACK
    assert first_bad({**whole, pack_key(PACK): b"".join(lines[1:])}) == 1
    assert first_bad({**whole, pack_key(PACK): b""}) == 1


@pytest.mark.parametrize(
    "respell",
    [
        lambda raw: raw + b"\n",
        lambda raw: b" " + raw,
        lambda raw: raw.replace(b'":', b'": ', 1),
        lambda raw: raw.replace(b'"kind":"thing', b'"kind":"\\u0074hing'),
        lambda raw: raw.replace(b'"seq":3', b'"seq":3,"seq":3'),
        lambda raw: raw.replace(b'"seq":3', b'"seq":3.0'),
        lambda raw: raw.replace(b"0.25", b"2.5e-1"),
        lambda raw: raw.replace(b'"actor":"ada",', b"") + b"",
        lambda raw: raw[:1] + b'"extra":1,' + raw[1:],
        msgspec.json.format,
    ],
)
def test_another_spelling_of_the_same_entry_is_refused(whole, respell):
    raw = respell(whole[entry_key(3)])
    assert raw != whole[entry_key(3)]
    assert first_bad({**whole, entry_key(3): raw}) == 3


def test_the_unused_bits_of_a_signature_in_base64_count(whole):
    entry = msgspec.json.decode(whole[entry_key(3)])
    signature = entry["signature"]
    # The last digit before the padding holds 4 bits that no decoder looks at.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    respelled = signature[:-3] + alphabet[alphabet.index(signature[-3]) ^ 1] + "=="
    assert base64.b64decode(respelled) == base64.b64decode(signature)
    raw = whole[entry_key(3)].replace(signature.encode(), respelled.encode())
    assert first_bad({**whole, entry_key(3): raw}) == 3
