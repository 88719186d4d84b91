from random import Random

import pytest

from argosy.core.errors import IntegrityError, InvalidInput
from argosy.serve import prediction_id

KEY = bytes(range(32))
DIGEST = "sha256:" + "0a1b2c3d4e5f6071" + "0" * 48


def test_an_id_says_which_version_answered_and_when():
    text = prediction_id.encode(DIGEST, 1_800_000_000.1234, Random(1), KEY)
    found = prediction_id.decode(text, KEY)
    assert found.version == "0a1b2c3d4e5f6071"
    assert found.time == pytest.approx(1_800_000_000.1234, abs=0.001)


def test_two_answers_in_one_millisecond_have_different_ids():
    random = Random(1)
    assert len({prediction_id.encode(DIGEST, 5.0, random, KEY) for _ in range(1000)}) == 1000


@pytest.mark.parametrize("place", [0, 17, 30, 41, 50])
def test_a_changed_digit_is_noticed(place):
    text = prediction_id.encode(DIGEST, 5.0, Random(1), KEY)
    changed = text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :]
    with pytest.raises(IntegrityError, match="tag does not match"):
        prediction_id.decode(changed, KEY)


def test_an_id_of_another_home_is_refused():
    text = prediction_id.encode(DIGEST, 5.0, Random(1), KEY)
    with pytest.raises(IntegrityError, match="not answered here"):
        prediction_id.decode(text, bytes(32))


@pytest.mark.parametrize("text", ["", "abc", "0" * 51, "0a1b2c3d4e5f6071-01-02-03", "sha256:" + "0" * 64])
def test_what_is_no_id_is_said_to_be_none(text):
    with pytest.raises(InvalidInput, match="not the id of a prediction"):
        prediction_id.decode(text, KEY)


def test_an_id_may_be_pasted_with_space_around_it():
    text = prediction_id.encode(DIGEST, 5.0, Random(1), KEY)
    assert prediction_id.decode(f"  {text}\n", KEY).version == "0a1b2c3d4e5f6071"
