import multiprocessing
import stat

import pytest

from argosy.core.errors import IntegrityError, InvalidInput
from argosy.security.keys import KeyRing, key_id_of, parse_public, public_text


def test_a_key_is_made_on_first_use_and_only_its_owner_can_read_it(tmp_path):
    keys = KeyRing.open(tmp_path)
    assert not (tmp_path / "keys").exists()
    key_id = keys.key_id
    file = tmp_path / "keys" / "ed25519.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert KeyRing.open(tmp_path).key_id == key_id


def test_a_signature_verifies_and_a_changed_bit_of_text_or_signature_does_not(tmp_path):
    keys = KeyRing.open(tmp_path)
    signature = keys.sign(b"text")
    keys.verify(keys.key_id, b"text", signature)
    for data, sign in [(b"texu", signature), (b"text", bytes([signature[0] ^ 1]) + signature[1:]), (b"text", b"")]:
        with pytest.raises(IntegrityError) as caught:
            keys.verify(keys.key_id, data, sign)
        assert caught.value.code == "bad_signature"


def test_an_unknown_key_is_refused_until_it_is_trusted(tmp_path):
    other = KeyRing.open(tmp_path / "other")
    keys = KeyRing.open(tmp_path / "own")
    signature = other.sign(b"x")
    with pytest.raises(IntegrityError) as caught:
        keys.verify(other.key_id, b"x", signature)
    assert caught.value.code == "unknown_key"
    assert "argosy keys trust" in caught.value.hint
    assert keys.trust(other.public_key) == other.key_id
    keys.verify(other.key_id, b"x", signature)
    KeyRing.open(tmp_path / "own").verify(other.key_id, b"x", signature)
    assert other.key_id in KeyRing.open(tmp_path / "own").trusted()


def test_a_key_trusted_by_another_process_is_seen_without_opening_again(tmp_path):
    other = KeyRing.in_memory()
    keys, twin = KeyRing.open(tmp_path), KeyRing.open(tmp_path)
    with pytest.raises(IntegrityError):
        keys.verify(other.key_id, b"x", other.sign(b"x"))
    twin.trust(other.public_key)
    keys.verify(other.key_id, b"x", other.sign(b"x"))


def test_a_trusted_file_under_a_wrong_name_trusts_nobody(tmp_path):
    keys, other, third = KeyRing.open(tmp_path), KeyRing.in_memory(), KeyRing.in_memory()
    keys.trust(other.public_key)
    folder = tmp_path / "keys" / "trusted"
    (folder / f"{other.key_id}.pub").rename(folder / f"{third.key_id}.pub")
    with pytest.raises(IntegrityError):
        KeyRing.open(tmp_path).verify(third.key_id, b"x", other.sign(b"x"))


@pytest.mark.parametrize("key_id", ["", "../../../../../../../../etc/passwd", "../" + "a" * 29, "ä" * 32, "0" * 32])
def test_a_key_id_from_outside_never_leaves_the_folder(tmp_path, key_id):
    with pytest.raises(IntegrityError):
        KeyRing.open(tmp_path).verify(key_id, b"x", b"y" * 64)


def test_a_private_key_others_can_read_is_refused_with_the_command_that_helps(tmp_path):
    _ = KeyRing.open(tmp_path).key_id
    (tmp_path / "keys" / "ed25519.key").chmod(0o644)
    with pytest.raises(InvalidInput, match="can be read by others") as caught:
        KeyRing.open(tmp_path).sign(b"x")
    assert "chmod 600" in caught.value.hint


def test_a_damaged_private_key_is_said_and_not_replaced(tmp_path):
    _ = KeyRing.open(tmp_path).key_id
    file = tmp_path / "keys" / "ed25519.key"
    file.write_bytes(b"nonsense")
    with pytest.raises(IntegrityError, match="damaged"):
        _ = KeyRing.open(tmp_path).key_id
    assert file.read_bytes() == b"nonsense"


def test_a_private_key_behind_a_link_is_refused(tmp_path):
    _ = KeyRing.open(tmp_path / "real").key_id
    (tmp_path / "home" / "keys").mkdir(parents=True)
    (tmp_path / "home" / "keys" / "ed25519.key").symlink_to(tmp_path / "real" / "keys" / "ed25519.key")
    with pytest.raises(InvalidInput):
        _ = KeyRing.open(tmp_path / "home").key_id


def test_public_keys_survive_being_pasted_and_nothing_else_does():
    keys = KeyRing.in_memory(bytes(32))
    text = public_text(keys.public_key)
    assert parse_public(f" {text}\n") == keys.public_key
    for wrong in ["", "argosy-ed25519:", text[:-1], text + "A", text.replace("argosy", "other"), text[15:], "ü" * 59]:
        with pytest.raises(InvalidInput):
            parse_public(wrong)


def test_a_key_in_memory_with_a_seed_is_the_same_each_time():
    one, two = KeyRing.in_memory(bytes(32)), KeyRing.in_memory(bytes(32))
    assert one.public_key == two.public_key
    assert one.trusted() == [key_id_of(one.public_key)]


def _key_id(home, barrier, answers):
    barrier.wait()
    answers.put(KeyRing.open(home).key_id)


def test_many_first_commands_at_once_share_one_key(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_key_id, args=(tmp_path, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    found = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert len(found) == 1
