"""How ranks meet: who is let in, who is refused and told why, and that nobody waits for ever."""

import contextlib
import hashlib
import hmac
import os
import socket
import struct
import threading
import time

import msgspec
import numpy as np
import pytest

from argosy.core.errors import Conflict, DeadlineExceeded, Denied, InvalidInput, Unavailable
from argosy.train.network.handshake import Guest, check_token, dial, listen, new_token, split_address
from argosy.train.network.rendezvous import Hello, Rendezvous, code_digest
from argosy.train.network.transport import TcpTransport
from network_ranks import QUICK, TOKEN, joined
from ranks import run_ranks


@pytest.fixture
def rendezvous():
    found = Rendezvous(2, token=TOKEN, digest="sha256:aaaa")
    yield found
    found.close()


def join(rendezvous, rank=0, size=2, **options):
    chosen = {"token": TOKEN, "digest": "sha256:aaaa", "join_s": 20.0} | options
    return TcpTransport.join(rendezvous.address, rank, size, **chosen)


def test_it_listens_on_the_loopback_address_unless_told_otherwise(rendezvous):
    assert rendezvous.address.startswith("127.0.0.1:")


def test_a_rank_with_another_token_is_refused(rendezvous):
    with pytest.raises(Denied, match="another token") as caught:
        join(rendezvous, token=new_token())
    assert caught.value.code == "wrong_token"
    assert rendezvous.missing() == [0, 1]


def test_a_rank_that_runs_other_code_is_refused_and_told(rendezvous):
    with pytest.raises(
        InvalidInput, match=r"rank 1 has other code, data or settings \(bbbb\) than the first host's job \(aaaa\)"
    ) as caught:
        join(rendezvous, rank=1, digest="sha256:bbbb")
    assert caught.value.code == "other_code"
    assert "same version" in caught.value.hint


@pytest.mark.parametrize(("rank", "size"), [(0, 3), (2, 2), (-1, 2)])
def test_a_rank_of_another_number_of_ranks_is_refused_and_told(rendezvous, rank, size):
    with pytest.raises(InvalidInput, match=f"rank {rank} of {size} asked to join a training of 2 ranks") as caught:
        join(rendezvous, rank=rank, size=size)
    assert caught.value.code == "other_world_size"


def test_ranks_that_do_not_come_are_named_when_the_time_is_over(rendezvous):
    with pytest.raises(DeadlineExceeded, match=r"rank 0 waited 0.5 s for all 2 ranks; not there: 1") as caught:
        join(rendezvous, rank=0, join_s=0.5)
    assert caught.value.code == "ranks_missing"
    assert rendezvous.missing() == [0, 1]


def test_nobody_at_the_address_is_said_when_the_time_is_over():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable, match=f"found nobody at 127.0.0.1:{port}") as caught:
        TcpTransport.join(f"127.0.0.1:{port}", 0, 2, token=TOKEN, join_s=0.3)
    assert caught.value.code == "no_rendezvous"


def test_ranks_may_come_before_the_rendezvous_is_open():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    found = {}
    threads = [
        threading.Thread(
            target=lambda rank=rank: found.update(
                {rank: TcpTransport.join(f"127.0.0.1:{port}", rank, 2, token=TOKEN, **QUICK)}
            )
        )
        for rank in range(2)
    ]
    for thread in threads:
        thread.start()
    rendezvous = Rendezvous(2, token=TOKEN, port=port)
    for thread in threads:
        thread.join(20.0)
    rendezvous.close()
    assert sorted(found) == [0, 1]
    run_ranks([found[0], found[1]], lambda transport: transport.all_reduce(np.ones(3)))


def test_a_later_generation_goes_on_without_those_that_do_not_come_back():
    rendezvous = Rendezvous(3, token=TOKEN, patience_s=0.3)
    try:
        run_ranks(joined(rendezvous, 3), lambda transport: transport.close(failed=transport.rank == 1))
        found = {}

        def come(rank):
            found[rank] = TcpTransport.join(rendezvous.address, rank, 3, token=TOKEN, **QUICK)

        threads = [threading.Thread(target=come, args=(rank,)) for rank in (2, 0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20.0)
        assert [(found[rank].rank, found[rank].world_size) for rank in (0, 2)] == [(0, 2), (1, 2)]
        sums = run_ranks([found[0], found[2]], lambda transport: _sum(transport, 1.0 + transport.rank))
        assert sums == [3.0, 3.0]
        assert rendezvous.left_out() == []
        late = threading.Thread(target=come, args=(1,))
        late.start()
        while not rendezvous.left_out():
            time.sleep(0.01)
        assert rendezvous.left_out() == [1]
        for transport in (found[0], found[2]):
            transport.close()
        again = [threading.Thread(target=come, args=(rank,)) for rank in (0, 2)]
        for thread in again:
            thread.start()
        for thread in (late, *again):
            thread.join(20.0)
        for transport in found.values():
            transport.close()
        assert (found[1].rank, found[1].world_size, found[1].generation) == (1, 3, 3)
    finally:
        rendezvous.close()


def _sum(transport, number):
    values = np.array([number])
    transport.all_reduce(values)
    return float(values[0])


def test_the_first_generation_waits_for_all():
    rendezvous = Rendezvous(2, token=TOKEN, patience_s=0.1)
    try:
        with pytest.raises(DeadlineExceeded, match="not there: 1"):
            TcpTransport.join(rendezvous.address, 0, 2, token=TOKEN, join_s=1.0)
    finally:
        rendezvous.close()


def test_a_port_that_is_taken_names_the_process_that_has_it(rendezvous):
    port = int(rendezvous.address.rpartition(":")[2])
    with pytest.raises(
        Conflict, match=rf"127.0.0.1:{port}, where process {os.getpid()} \(.+\) listens already"
    ) as caught:
        Rendezvous(2, token=TOKEN, port=port)
    assert caught.value.code == "port_taken"
    assert "choose another port" in caught.value.hint


def test_an_address_of_another_machine_cannot_be_listened_on():
    with pytest.raises(InvalidInput, match=r"can't listen on 203\.0\.113\.7:0") as caught:
        Rendezvous(2, token=TOKEN, host="203.0.113.7")
    assert caught.value.code == "bad_address"


@pytest.mark.parametrize("address", ["nothing", "host:", ":80", "host:port", "host:70000"])
def test_addresses_of_another_form_are_refused(address):
    with pytest.raises(InvalidInput, match="form 'host:port'"):
        split_address(address)


def test_addresses_of_both_families_are_taken():
    assert split_address("10.0.0.1:7000") == ("10.0.0.1", 7000)
    assert split_address("[::1]:7000") == ("::1", 7000)


def test_a_token_that_could_be_guessed_is_refused():
    with pytest.raises(InvalidInput, match="at least 32 are needed"):
        check_token("secret")
    assert new_token() != new_token()


@pytest.mark.capability("T7")
def test_lost_ranks_come_again_and_form_the_next_generation():
    rendezvous = Rendezvous(2, token=TOKEN)
    first = joined(rendezvous, 2)
    assert [transport.generation for transport in first] == [1, 1]
    first[1].close(failed=True)
    second = joined(rendezvous, 2)
    assert [transport.generation for transport in second] == [2, 2]
    run_ranks(second, lambda transport: transport.all_reduce(np.ones(3)))
    first[0].close(failed=True)
    rendezvous.close()


@pytest.mark.capability("T7")
def test_a_rank_of_a_former_generation_is_refused():
    rendezvous = Rendezvous(2, token=TOKEN)
    for transport in joined(rendezvous, 2):
        transport.close()
    with pytest.raises(Denied, match="belongs to generation 1 of this training, which is at 1") as caught:
        TcpTransport.join(rendezvous.address, 0, 2, token=TOKEN, generation=1, join_s=10.0)
    assert caught.value.code == "former_generation"
    rendezvous.close()


def test_the_next_generation_may_have_another_number_of_ranks():
    rendezvous = Rendezvous(3, token=TOKEN)
    for transport in joined(rendezvous, 3):
        transport.close()
    rendezvous.expect(2)
    transports = joined(rendezvous, 2)
    assert [transport.world_size for transport in transports] == [2, 2]
    run_ranks(transports, lambda transport: transport.all_reduce(np.ones(3)))
    rendezvous.close()


def test_a_second_process_of_the_same_rank_takes_the_place_of_the_first(rendezvous):
    refused = []

    def come():
        try:
            join(rendezvous, rank=0)
        except Conflict as error:
            refused.append(error.code)

    first = threading.Thread(target=come)
    first.start()
    until(lambda: rendezvous.missing() == [1])
    found = {}
    others = [
        threading.Thread(target=lambda rank=rank: found.update({rank: join(rendezvous, rank)})) for rank in (0, 1)
    ]
    others[0].start()
    first.join(10.0)
    assert refused == ["rank_taken"]
    others[1].start()
    for thread in others:
        thread.join(10.0)
    run_ranks([found[0], found[1]], lambda transport: transport.all_reduce(np.ones(3)))


def test_a_rank_that_was_killed_while_it_waited_does_not_count_as_there(rendezvous):
    hello = Hello(rank=0, world_size=2, digest="sha256:aaaa", generation=0, address="127.0.0.1:1", join_s=20.0)
    connection = say_hello(rendezvous.address, hello)
    until(lambda: rendezvous.missing() == [1])
    connection.close()
    until(lambda: rendezvous.missing() == [0, 1])


def test_a_rendezvous_that_closes_tells_those_who_wait(rendezvous):
    errors = []

    def come():
        try:
            join(rendezvous, rank=0, join_s=2.0)
        except Unavailable as error:
            errors.append(error.code)

    thread = threading.Thread(target=come)
    thread.start()
    until(lambda: rendezvous.missing() == [1])
    rendezvous.close()
    thread.join(15.0)
    assert errors == ["no_rendezvous"]


@pytest.mark.parametrize(
    "noise",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 32, b"\x00" * 32 + struct.pack(">I", 2**32 - 1), os.urandom(5000)],
)
def test_strangers_are_not_answered_and_keep_nobody_from_joining(rendezvous, noise):
    with socket.create_connection(split_address(rendezvous.address), timeout=5.0) as stranger:
        stranger.sendall(noise)
        transports = joined(rendezvous, 2, digest="sha256:aaaa")
        run_ranks(transports, lambda transport: transport.all_reduce(np.ones(3)))


def test_whoever_listens_without_the_token_learns_nothing_and_is_refused():
    impostor = socket.create_server(("127.0.0.1", 0))

    def answer():
        connection, _ = impostor.accept()
        with connection:
            connection.sendall(b"argosy-ranks-1\r\n" + bytes(32))
            heard = connection.recv(4096)
            assert TOKEN.encode() not in heard
            connection.sendall(b"+" + struct.pack(">I", 2) + b"{}" + bytes(32))
            with contextlib.suppress(OSError):
                connection.recv(1)

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(Denied, match="does not know the token"):
        dial(f"127.0.0.1:{impostor.getsockname()[1]}", TOKEN, b"hello")
    thread.join(10.0)
    impostor.close()


def test_something_else_than_a_training_is_told_from_one():
    server = socket.create_server(("127.0.0.1", 0))

    def answer():
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"220 mail.example ESMTP ready\r\n")
            with contextlib.suppress(OSError):
                connection.recv(1)

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(Unavailable, match="something else than a training") as caught:
        dial(f"127.0.0.1:{server.getsockname()[1]}", TOKEN, b"hello")
    assert caught.value.code == "not_a_training"
    thread.join(10.0)
    server.close()


def test_a_greeting_of_one_handshake_is_of_no_use_in_another(rendezvous):
    """What was heard of a rank that was let in does not let anybody else in."""
    heard = []
    hello = Hello(rank=0, world_size=2, digest="sha256:aaaa", generation=0, address="127.0.0.1:1", join_s=1.0)
    say_hello(rendezvous.address, hello, heard).close()
    with socket.create_connection(split_address(rendezvous.address), timeout=5.0) as replay:
        replay.recv(48, socket.MSG_WAITALL)
        replay.sendall(heard[0])
        assert replay.recv(1) == b"-"


def test_the_digest_of_the_code_is_one_for_all_processes():
    assert code_digest() == code_digest()
    assert code_digest().startswith("sha256:")


def say_hello(address, hello, heard=None):
    """Come as a rank by hand, up to where a rank waits for the others; note in `heard` what was said."""
    connection = socket.create_connection(split_address(address), timeout=5.0)
    greeting = connection.recv(48, socket.MSG_WAITALL)
    body, nonce = msgspec.json.encode(hello), bytes(32)
    mac = hmac.digest(TOKEN.encode(), greeting[:16] + b"dial" + greeting[16:] + nonce + body, hashlib.sha256)
    said = nonce + struct.pack(">I", len(body)) + body + mac
    connection.sendall(said)
    if heard is not None:
        heard.append(said)
    return connection


def until(condition, seconds=10.0):
    """Look until the condition holds."""
    done = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("it never came to be")


def test_a_guest_who_left_is_seen_to_have_left():
    one, other = socket.socketpair()
    guest = Guest(one, b"", lambda body: None)
    assert not guest.is_gone()
    other.close()
    assert guest.is_gone()
    one.close()


def test_ranks_that_only_their_own_host_can_reach_are_told_so():
    rendezvous = Rendezvous(2, token=TOKEN)
    errors = {}

    def come(rank, bind):
        # Another of this machine's addresses would stand for another host; the address alone matters here.
        hello = Hello(rank=rank, world_size=2, digest="", generation=0, address=bind, join_s=20.0)
        connection, answer = dial(rendezvous.address, TOKEN, msgspec.json.encode(hello), answer_s=20.0)
        connection.close()
        errors[rank] = msgspec.json.decode(answer)["refused"]

    threads = [
        threading.Thread(target=come, args=(rank, bind)) for rank, bind in enumerate(["127.0.0.1:5", "10.0.0.7:5"])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    rendezvous.close()
    assert {error["code"] for error in errors.values()} == {"bad_address"}
    assert "rank 0 came by the loopback address (127.0.0.1:5)" in errors[1]["message"]


def test_every_connection_passes_through_what_makes_it_secure_on_both_sides():
    seen = []

    def secure(connection, *, is_listener):
        seen.append(is_listener)
        return connection

    rendezvous = Rendezvous(2, token=TOKEN, secure=secure)
    run_ranks(joined(rendezvous, 2, secure=secure), lambda transport: transport.all_reduce(np.ones(3)))
    rendezvous.close()
    # Two with the rendezvous, three between the ranks.
    assert sorted(seen) == [False] * 5 + [True] * 5
