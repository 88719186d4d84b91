"""API keys: their form, and what is kept of them."""

import re
from random import Random

from argosy.security.api_keys import MAX_KEY_CHARACTERS, key_digest, key_id, make_key


def test_a_key_is_recognizable_names_itself_and_has_256_random_bits():
    asked = []

    def randomness(size):
        asked.append(size)
        return Random(7).randbytes(size)

    key = make_key(randomness)
    assert asked == [5, 32]
    assert re.fullmatch(r"argosy_[a-z2-7]{8}_[a-z2-7]{52}", key.text)
    assert len(key.text) == MAX_KEY_CHARACTERS
    assert key.id == key.text[7:15] == key_id(key.text)


def test_two_keys_have_nothing_in_common():
    first, second = make_key(), make_key()
    assert first.id != second.id
    assert first.text[16:] != second.text[16:]
    assert first.digest != second.digest


def test_the_digest_is_of_the_whole_key_and_says_nothing_of_it():
    key = make_key(Random(1).randbytes)
    assert key.digest == key_digest(key.text)
    assert re.fullmatch(r"[0-9a-f]{64}", key.digest)
    other_id = key.text.replace(key.id, "a" * 8)
    assert key_digest(other_id) != key.digest


def test_a_key_does_not_show_itself_when_it_is_printed():
    key = make_key()
    assert key.text not in repr(key)
    assert key.text[16:] not in f"{key!r} {[key]}"


def test_what_has_not_the_form_of_a_key_has_no_id_and_still_a_digest():
    whole = make_key().text
    for text in ("", "argosy_", whole + "a", whole[:-1], whole.upper(), whole + "\n", "ärgosy", "\udc80", "x" * 10_000):
        assert key_id(text) == ""
        assert len(key_digest(text)) == 64
