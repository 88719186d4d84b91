"""Whatever bytes come: only clean refusals, never another exception, no hang, bounded memory.

The long run is `make fuzz`, for FUZZ_SECONDS (60) from FUZZ_SEED (by chance, and printed).
"""

import contextlib
import os
import time
from pathlib import Path
from random import Random

import pytest

from argosy.core.errors import ArgosyError, InvalidInput
from argosy.core.tensors import Signature
from argosy.serve import plain, v2, wire
from argosy.serve.requests import check_inputs
from fuzzing import GOOD, KEY, POOL, SIGNATURES, Gateway, answers, case, cuts, mutated, signed
from malformed import CORPUS, CORPUS_OF_KINDS

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))


def numbers(count, seconds=None):
    """Count up, to `count` or for so long."""
    began = time.monotonic()
    number = 0
    while number < count or (seconds is not None and time.monotonic() - began < seconds):
        yield number
        number += 1


def seed_of(is_long):
    return os.environ.get("FUZZ_SEED") or (str(time.time_ns()) if is_long else "argosy")


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# HTTP ----------------------------------------------------------------------------------------------------------------


def test_the_good_requests_are_good():
    gateway = Gateway()
    for raw in GOOD:
        found, _ = gateway.talk([raw])
        assert [status for status, _ in found] in ([200], [400]), (raw, found)
    refused = [raw for raw in GOOD if gateway.talk([raw])[0][0][0] != 200]
    assert len(refused) == 1  # the one with a body that asks for nothing


def test_the_malformed_requests_mean_the_same_without_a_socket():
    gateway = Gateway()
    for name, raw, statuses in CORPUS + CORPUS_OF_KINDS:
        if len(raw) < 100_000:
            found, _ = gateway.talk([raw])
            assert {found[0][0]} == statuses, (name, found)


def fuzz_http(seed, runs):
    gateway, pool, known = Gateway(), list(POOL), set()
    count = slowest = 0
    for number in runs:
        raw = case(seed, number, pool)
        random = Random(number)
        began = time.monotonic()
        try:
            whole, is_over = gateway.talk([raw])
            again, _ = gateway.talk([raw])
            cut, is_cut_over = gateway.talk(cuts(random, raw))
        except BaseException as error:
            error.add_note(f"seed {seed}, number {number}: {raw!r}")
            raise
        slowest = max(slowest, time.monotonic() - began)
        # A head that was seen before is read another way than the first time, and pieces are read one by one.
        assert again == whole, (seed, number, raw, whole, again)
        assert (cut, is_cut_over) == (whole, is_over), (seed, number, raw, whole, cut)
        count += 1
        if tuple(whole) not in known and len(pool) < len(POOL) + 500:
            # What is answered in a new way is worth changing further.
            known.add(tuple(whole))
            pool.append(raw)
    assert slowest < 2.0
    return count, len(known)


def test_any_connection_is_answered_cleanly_and_however_it_is_cut():
    assert fuzz_http(seed_of(is_long=False), range(2500))[1] > 50


def test_every_cut_of_a_pipeline_means_the_same():
    gateway = Gateway()
    raw = b"".join(GOOD)
    whole, _ = gateway.talk([raw])
    assert len(whole) >= len(GOOD) - 1
    assert gateway.talk([raw[i : i + 1] for i in range(len(raw))])[0] == whole
    for at in range(1, len(raw), 31):
        assert gateway.talk([raw[:at], raw[at:]])[0] == whole, at


def fuzz_access(seed, runs):
    """Let a holder of the key and strangers talk in turns; no stranger may be answered as if they held it."""
    gateway = Gateway(is_guarded=True)
    infer, asked = gateway.world.plane.infer, []

    def counted(*given, **named):
        asked.append(named["client"].name)
        return infer(*given, **named)

    gateway.world.plane.infer = counted
    count = answered = 0
    for number in runs:
        random = Random(f"{seed}-{number}")
        friend = b"".join(random.choice(GOOD) for _ in range(random.choice((1, 2, 3))))
        stranger = case(seed, number)
        if KEY.text.encode() in stranger:
            continue
        try:
            sent = cuts(random, signed(friend))
            found, _ = gateway.talk(sent)
            assert 401 not in [status for status, _ in found]
            assert set(asked) <= {"ada"}
            answered += len(asked)
            asked.clear()
            # Also what the holder's own connection was cut into means nothing from somebody else.
            places = [random.randrange(1, len(sent)) for _ in range(3 if len(sent) > 1 else 0)]
            for pieces in (cuts(random, stranger), cuts(random, friend), *(sent[at:] for at in places)):
                if KEY.text.encode() not in b"".join(pieces):
                    gateway.talk(pieces)
                    assert asked == [], pieces
        except BaseException as error:
            error.add_note(f"seed {seed}, number {number}: {friend!r} {stranger!r}")
            raise
        count += 1
    return count, answered


def test_no_stranger_is_answered_however_requests_are_cut_and_mixed():
    count, answered = fuzz_access(seed_of(is_long=False), range(800))
    assert count > 700
    assert answered > 500


# Bodies --------------------------------------------------------------------------------------------------------------


def bodies(seed, number):
    random = Random(f"{seed}-{number}")
    raw = mutated(random, random.choice(POOL).partition(b"\r\n\r\n")[2], POOL)
    return raw, random.choice((None, None, 0, len(raw), len(raw) // 2, len(raw) + 1, raw.find(b"}]}") + 3))


def fuzz_bodies(seed, runs):
    count = good = 0
    for number in runs:
        raw, length = bodies(seed, number)
        try:
            found = outcome(lambda: v2.decode_request(raw, length))  # noqa: B023 - called at once
            if length is None:
                # The short way must never take what the long one refuses, nor read it differently.
                assert found == outcome(lambda: v2._decode_any(raw, None))  # noqa: B023
            for signature in SIGNATURES.values():
                for read in (plain.decode_request, plain.of_image):
                    with contextlib.suppress(InvalidInput):
                        good += bool(check_inputs(signature, read(raw, signature).inputs))
                if not isinstance(found, str):
                    with contextlib.suppress(InvalidInput):
                        check_inputs(signature, dict(v2.decode_request(raw, length).inputs))
        except BaseException as error:
            error.add_note(f"seed {seed}, number {number}: {raw!r}, {length}")
            raise
        count += 1
    return count, good


def outcome(read):
    """Return what was read as plain values, or the code of the refusal."""
    try:
        found = read()
    except InvalidInput as error:
        return error.code
    tensors = [(t.name, t.datatype, tuple(t.shape), bytes(t.data)) for t in found.inputs.values()]
    return (found.id, tensors, found.outputs, found.is_binary, found.timeout_s)


def test_any_body_is_read_or_refused_the_same_on_both_ways():
    count, good = fuzz_bodies(seed_of(is_long=False), range(4000))
    assert count == 4000
    assert good > 50


# Frames --------------------------------------------------------------------------------------------------------------

FRAMES = [
    b"".join(bytes(piece) for piece in wire.encode(message, body))
    for message, body in (
        (wire.Hello("r", 1, "sha256:00", "m:1", Signature(inputs=(), outputs=())), []),
        (wire.Run(1, (("x", "FP32", (1, 4)),), (1,)), [b"\0" * 16]),
        (wire.Done(1, 0.5, (wire.Output("y", "BYTES", (1,), (5,)),), (wire.Failure(0, "c", "m"),)), [b"\1\0\0\0a"]),
        (wire.Beat(), []),
        (wire.Leaving(), []),
        (wire.Bye(), []),
        (wire.Ask("status", {"a": [1, None, "b"]}), []),
        (wire.Answer({"a": 1}, {"code": "x"}), []),
    )
]


def read_frames(pieces):
    reader, found = wire.FrameReader(), []
    try:
        for piece in pieces:
            for frame, body in reader.feed(piece):
                found.append((repr(frame), bytes(body)))
    except ArgosyError as error:
        found.append(error.code)
    return found


def fuzz_frames(seed, runs):
    count = good = 0
    for number in runs:
        random = Random(f"{seed}-{number}")
        raw = b"".join(mutated(random, random.choice(FRAMES), FRAMES) for _ in range(random.choice((1, 2, 4))))
        try:
            whole = read_frames([raw])
            assert read_frames(cuts(random, raw)) == whole
        except BaseException as error:
            error.add_note(f"seed {seed}, number {number}: {raw!r}")
            raise
        good += bool(whole) and isinstance(whole[0], tuple)
        count += 1
    return count, good


def test_any_frame_is_read_or_refused_however_it_is_cut():
    count, good = fuzz_frames(seed_of(is_long=False), range(4000))
    assert count == 4000
    assert good > 500


# The long run --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3 * SECONDS + 300)
@pytest.mark.parametrize(
    ("fuzz", "part"),
    [(fuzz_http, 0.5), (fuzz_access, 0.2), (fuzz_bodies, 0.2), (fuzz_frames, 0.1)],
    ids=["http", "access", "bodies", "frames"],
)
def test_a_minute_of_it_finds_nothing_and_keeps_nothing(fuzz, part):
    seed = seed_of(is_long=True)
    fuzz(seed, range(1000))  # what is imported and cached once
    before = resident_bytes()
    count, found = fuzz(seed, numbers(0, SECONDS * part))
    kept = resident_bytes() - before
    print(f"seed {seed}: {count} inputs, {found} kinds of answers or good inputs, {kept >> 10} KiB kept")  # noqa: T201
    assert count > 100
    assert kept < 64 << 20


def test_the_reader_of_answers_notices_what_is_not_whole():
    for raw in (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", b"junk\r\n\r\n"):
        with pytest.raises(Exception):  # noqa: B017 - an assertion, or the parser's own error
            answers(raw)
    with pytest.raises(AssertionError):
        answers(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n")
