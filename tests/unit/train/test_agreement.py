"""What hosts agree on, from what computing and sending take."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.train.agreement import Agreement, Measured, agree, agreed
from argosy.train.config import AUTO, LocalConfig, TrainConfig
from argosy.train.network.links import Link
from network_ranks import ranks_on_hosts
from ranks import run_ranks

pytestmark = pytest.mark.capability("T5")

SLOW = Link(bytes_s=12.5e6, round_trip_s=0.005)
FAST = Link(bytes_s=12.5e9, round_trip_s=2e-5)


def measured(**fields):
    usual = {
        "hosts": 2,
        "step_s": 0.1,
        "parameters": 20_000_000,
        "link": SLOW,
        "coding_s": {"fp16": 1e-9, "int8": 2e-9},
    }
    return Measured(**(usual | fields))


def test_a_slow_network_makes_rounds_whose_exchange_hides_behind_the_next_one():
    chosen, reasons = agree(TrainConfig(), measured())
    assert (chosen.strategy, chosen.compression) == ("local-sgd", "int8")
    # 20 MB at 12.5 MB/s are 1.6 s, that is 16 steps.
    assert 16 < chosen.local.delay < 32
    assert chosen.local.interval >= 32
    assert len(reasons) == 3
    assert reasons[0].startswith("local-sgd over 2 hosts: what ")
    assert "100 Mbit/s" in reasons[1]


def test_a_fast_network_exchanges_in_every_step():
    chosen, reasons = agree(TrainConfig(), measured(link=FAST, coding_s={"fp16": 1e-9, "int8": 2e-9}))
    assert (chosen.strategy, chosen.compression) == ("data-parallel", "none")
    assert reasons[0] == "data-parallel over 2 hosts: gradients are exchanged in every step"


def test_a_codec_counts_where_it_is_quicker_than_the_wire():
    found = measured(link=Link(bytes_s=1.25e9, round_trip_s=1e-4), step_s=1.0)
    assert agree(TrainConfig(), found)[0].compression == "fp16"
    slow_codec = msgspec.structs.replace(found, coding_s={"fp16": 1e-7, "int8": 1e-7})
    assert agree(TrainConfig(), slow_codec)[0].compression == "none"


def test_what_was_asked_for_is_kept():
    asked = TrainConfig(
        strategy="local-sgd", compression="fp16", local=LocalConfig(interval=5, delay=0, outer="diloco")
    )
    chosen, _ = agree(asked, measured())
    assert chosen == asked
    named = agree(TrainConfig(strategy="data-parallel", compression="powersgd"), measured())[0]
    assert (named.strategy, named.compression) == ("data-parallel", "powersgd")
    assert agree(TrainConfig(strategy="parameter-server"), measured())[0].strategy == "parameter-server"


def test_double_precision_is_sent_as_it_is():
    for link in (SLOW, FAST):
        assert agree(TrainConfig(dtype="float64"), measured(link=link))[0].compression == "none"


@given(
    step_s=st.floats(1e-4, 10.0),
    parameters=st.integers(100, 10**9),
    bytes_s=st.floats(1e5, 1e10),
    round_trip_s=st.floats(1e-5, 0.3),
    hosts=st.integers(2, 16),
    strategy=st.sampled_from([AUTO, "data-parallel", "local-sgd"]),
    interval=st.sampled_from([AUTO, 1, 8, 500]),
)
def test_whatever_was_measured_nothing_is_left_open_and_all_of_it_can_be_done(  # noqa: PLR0917 - drawn by name
    step_s, parameters, bytes_s, round_trip_s, hosts, strategy, interval
):
    found = measured(
        step_s=step_s, parameters=parameters, hosts=hosts, link=Link(bytes_s=bytes_s, round_trip_s=round_trip_s)
    )
    chosen, _ = agree(TrainConfig(strategy=strategy, local=LocalConfig(interval=interval)), found)
    chosen.check()
    assert AUTO not in {chosen.strategy, chosen.compression}
    if chosen.strategy == "local-sgd":
        assert isinstance(chosen.local.interval, int)
        assert isinstance(chosen.local.delay, int)
        assert 0 <= chosen.local.delay <= chosen.local.interval


def test_rank_0_decides_once_and_a_training_that_goes_on_keeps_to_it(tmp_path):
    path = tmp_path / "agreement.json"

    def work(step_s):
        def run(everyone):
            found = agreed(path, "mine", everyone, TrainConfig(), lambda: measured(step_s=step_s))
            return msgspec.json.encode(found)

        return run_ranks(ranks_on_hosts([2, 1]), run)

    first = work(0.1)
    assert len(set(first)) == 1
    assert msgspec.json.decode(first[0], type=Agreement).train.strategy == "local-sgd"
    assert work(1e3) == first
    path.write_text("{}")
    assert work(1e3) != first
