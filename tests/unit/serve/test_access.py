"""Who may ask what: whatever is in doubt is refused."""

import json
from random import Random

import msgspec
import pytest

from argosy.core.clock import FakeClock
from argosy.core.errors import Denied, Internal, InvalidInput, Unavailable
from argosy.security.api_keys import make_key
from argosy.serve import access as module
from argosy.serve import access_file
from argosy.serve.access import (
    EVERY,
    POLICIES,
    Access,
    AccessKey,
    AccessRules,
    check_exposure,
    check_policies,
    is_loopback,
    url_of,
)
from argosy.serve.access_file import AccessFile
from argosy.serve.gateway_front import GatewayFront
from argosy.serve.heads import Head
from plane import World

KEYS = [make_key(Random(seed).randbytes) for seed in range(4)]
OPEN = AccessRules(is_on=False)


def granted(key, name="ada", endpoints=(EVERY,), **given):
    return AccessKey(id=key.id, name=name, digest=key.digest, endpoints=endpoints, **given)


def closed(*keys):
    return AccessRules(is_on=True, keys=keys)


def bearer(key):
    return f"Bearer {key.text}".encode()


@pytest.fixture
def clock():
    return FakeClock()


def refused(access, authorization, code="unauthorized"):
    with pytest.raises(Denied) as caught:
        access.caller_of(authorization)
    assert caught.value.code == code
    assert "argosy_a" not in f"{caught.value} {caught.value.hint}", "no error repeats a key"
    return caught.value.message


# ---- keys


@pytest.mark.capability("Z2")
def test_a_granted_key_names_its_holder_and_anything_else_is_refused(clock):
    access = Access(clock, closed(granted(KEYS[0], "ada", ("digits",), weight=2.0), granted(KEYS[1], "bob")))
    caller = access.caller_of(bearer(KEYS[0]))
    assert (caller.name, caller.weight) == ("ada", 2.0)
    assert caller.may("digits")
    assert not caller.may("other")
    assert access.caller_of(bearer(KEYS[1]).decode()).name == "bob"
    assert access.caller_of(bearer(KEYS[1]).decode()).may("anything")
    assert refused(access, None) == "this request needs a key"
    assert refused(access, bearer(KEYS[2])) == "the key sent with this request is not valid"


def test_a_key_with_a_known_id_and_another_secret_is_refused(clock):
    access = Access(clock, closed(granted(KEYS[0])))
    refused(access, b"Bearer argosy_" + KEYS[0].id.encode() + KEYS[1].text[15:].encode())


@pytest.mark.parametrize(
    "spelling",
    [
        "{key}", "Basic {key}", "Bearer", "Bearer ", "Bearer {key}x", "Bearer x{key}", "Bearer {key} {key}",
        "Bearer {upper}", "Bearer {short}", "Bearer {key}\t", "Bearer\t{key}", "Bearer {digest}", "Bearer {id}",
        "Bearer {key}" + " " * 500, "Token {key}", "BearerBearer {key}", "Bearer  argosy__", "",
    ],
)  # fmt: skip
def test_other_spellings_of_a_key_do_not_pass_unless_they_are_that_key(clock, spelling):
    key = KEYS[0]
    text = spelling.format(key=key.text, upper=key.text.upper(), short=key.text[:-1], digest=key.digest, id=key.id)
    access = Access(clock, closed(granted(key)))
    for value in (text, text.encode()):
        if text.strip() == f"Bearer {key.text}" and len(text) < 120:
            assert access.caller_of(value).name == "ada"  # white space around a header's value is no part of it
        else:
            refused(access, value)


def test_the_scheme_is_read_in_any_case_as_the_standard_wants(clock):
    access = Access(clock, closed(granted(KEYS[0])))
    for scheme in ("bearer", "BEARER", "BeArEr"):
        assert access.caller_of(f"{scheme} {KEYS[0].text}").name == "ada"


def test_a_key_ends_at_its_time_also_when_it_was_used_before(clock):
    access = Access(clock, closed(granted(KEYS[0], expires=clock.now() + 60)))
    assert access.caller_of(bearer(KEYS[0])).name == "ada"
    clock.advance(59.9)
    assert access.caller_of(bearer(KEYS[0])).name == "ada"
    clock.advance(0.2)
    assert refused(access, bearer(KEYS[0])) == "the key of 'ada' has expired"
    clock.advance(3600)
    refused(access, bearer(KEYS[0]))


@pytest.mark.capability("Z2")
def test_a_revoked_key_ends_at_once_also_when_it_was_used_before(clock):
    access = Access(clock, closed(granted(KEYS[0]), granted(KEYS[1], "bob")))
    assert access.caller_of(bearer(KEYS[0])).name == "ada"
    access.set(closed(granted(KEYS[1], "bob")))
    refused(access, bearer(KEYS[0]))
    assert access.caller_of(bearer(KEYS[1])).name == "bob"


def test_without_rules_that_want_a_key_everybody_may_everything(clock):
    access = Access(clock, OPEN)
    assert not access.is_on
    for authorization in (None, b"", b"Bearer nonsense", bearer(KEYS[0])):
        caller = access.caller_of(authorization)
        assert (caller.name, caller.may("anything")) == ("", True)


def test_the_last_key_revoked_leaves_the_gateway_closed(clock):
    access = Access(clock, closed(granted(KEYS[0])))
    access.set(closed())
    assert access.is_on
    refused(access, bearer(KEYS[0]))
    refused(access, None)


def test_while_the_rules_are_unknown_everybody_is_asked_to_come_again(clock):
    access = Access(clock, None)
    assert access.is_on
    for authorization in (None, bearer(KEYS[0])):
        with pytest.raises(Unavailable) as caught:
            access.caller_of(authorization)
        assert (caller_code := caught.value.code) == "access_unknown", caller_code
    access.set(closed(granted(KEYS[0])))
    assert access.caller_of(bearer(KEYS[0])).name == "ada"
    access.set(None)
    with pytest.raises(Unavailable):
        access.caller_of(bearer(KEYS[0]))


def test_no_endpoints_are_no_endpoints_and_not_all(clock):
    caller = Access(clock, closed(granted(KEYS[0], endpoints=()))).caller_of(bearer(KEYS[0]))
    assert not caller.may("digits")
    assert not caller.may("")
    assert not caller.may(EVERY)
    with pytest.raises(Denied) as caught:
        caller.check("digits")
    assert caught.value.code == "forbidden"
    assert caught.value.message == "the key of 'ada' is not for endpoint 'digits'"


def test_what_is_remembered_of_headers_is_bounded(clock, monkeypatch):
    monkeypatch.setattr(module, "_MAX_KNOWN", 8)
    access = Access(clock, closed(granted(KEYS[0])))
    for spaces in range(50):
        access.caller_of(b"Bearer " + b" " * spaces + KEYS[0].text.encode())
        with pytest.raises(Denied):
            access.caller_of(b"Bearer " + b"x" * spaces)
        assert len(access._known) <= 8
    assert all(KEYS[0].text.encode() in known for known in access._known), "what was refused is not kept"


def test_a_known_key_costs_one_look_up_and_no_hashing(clock, monkeypatch):
    access = Access(clock, closed(granted(KEYS[0])))
    first = access.caller_of(bearer(KEYS[0]))
    monkeypatch.setattr(module, "key_digest", None)
    assert access.caller_of(bearer(KEYS[0])) is first


@pytest.mark.capability("Z2")
def test_what_another_process_admitted_is_looked_at_again_by_the_name_of_the_holder(clock):
    access = Access(clock, closed(granted(KEYS[0], "ada", ("m",), expires=clock.now() + 10), granted(KEYS[1], "bob")))

    def code(name, endpoint="m"):
        try:
            access.check_holder(name, endpoint)
        except (Denied, Unavailable) as error:
            return error.code
        return ""

    assert [code("ada"), code("ada", "other"), code("bob", "other"), code("eve"), code("")] == [
        "", "forbidden", "", "unauthorized", "unauthorized",
    ]  # fmt: skip
    clock.advance(11)
    assert [code("ada"), code("bob")] == ["unauthorized", ""]
    access.set(closed())
    assert code("bob") == "unauthorized"
    access.set(None)
    assert code("bob") == code("") == "access_unknown"
    access.set(OPEN)
    assert code("") == code("bob") == ""


# ---- the file


def test_rules_are_found_again_after_a_restart(tmp_path):
    file = AccessFile(tmp_path / "access.json")
    rules = closed(granted(KEYS[0], "ada", ("digits",), weight=2.0, expires=7.0))
    file.save(rules)
    assert AccessFile(tmp_path / "access.json").load(is_guarded=True) == rules
    assert AccessFile(tmp_path / "access.json").load(is_guarded=False) == rules, "closed wins"
    assert (tmp_path / "access.json").stat().st_mode & 0o777 == 0o600
    assert KEYS[0].text not in (tmp_path / "access.json").read_text()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "null", '{"keys":[]}', '{"is_on":0}', '{"is_on":"false"}', '{"is_on":false,"x":1}']
)
@pytest.mark.parametrize("is_guarded", [True, False])
def test_a_file_that_cannot_be_understood_leaves_the_gateway_closed(tmp_path, content, is_guarded):
    (tmp_path / "access.json").write_text(content)
    assert AccessFile(tmp_path / "access.json").load(is_guarded=is_guarded) is None


def test_a_file_that_cannot_be_read_leaves_the_gateway_closed(tmp_path):
    (tmp_path / "access.json").mkdir()
    assert AccessFile(tmp_path / "access.json").load(is_guarded=False) is None


@pytest.mark.parametrize(
    ("saved", "is_guarded", "found"),
    [(None, False, OPEN), (None, True, None), (OPEN, False, OPEN), (OPEN, True, None), (closed(), False, closed())],
)
def test_a_gateway_is_open_only_where_file_and_starter_agree(tmp_path, saved, is_guarded, found):
    file = AccessFile(tmp_path / "access.json")
    if saved is not None:
        file.save(saved)
    assert file.load(is_guarded=is_guarded) == found


def test_rules_that_cannot_be_saved_take_the_former_ones_with_them(tmp_path, monkeypatch):
    file = AccessFile(tmp_path / "access.json")
    file.save(closed(granted(KEYS[0])))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(access_file, "write_atomic", full)
    file.save(closed())
    assert not (tmp_path / "access.json").exists()
    assert file.load(is_guarded=True) is None, "the revoked key is not believed"


def test_equal_rules_have_equal_digests_and_others_have_others():
    first, second = closed(granted(KEYS[0])), closed(granted(KEYS[1]))
    assert first.digest == msgspec.json.decode(msgspec.json.encode(first), type=AccessRules).digest
    assert len({first.digest, second.digest, closed().digest, OPEN.digest}) == 4


# ---- addresses


@pytest.mark.capability("Z1")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "192.168.0.1", "2001:db8::1", "169.254.0.1"])
def test_an_address_others_can_reach_needs_tls_and_access_control(host):
    check_exposure(host, has_tls=True, is_guarded=True)
    for has_tls, is_guarded, missing in (
        (False, False, "TLS and access control"),
        (True, False, "access control"),
        (False, True, "TLS"),
    ):
        with pytest.raises(InvalidInput, match=f"could reach it, without {missing}$") as caught:
            check_exposure(host, has_tls=has_tls, is_guarded=is_guarded)
        assert caught.value.code == "not_loopback"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_a_loopback_address_needs_nothing(host):
    check_exposure(host, has_tls=False, is_guarded=False)


@pytest.mark.parametrize("host", ["", "models.example", "127.0.0.1:80", "1.2.3", "http://127.0.0.1"])
def test_what_is_no_address_is_refused_rather_than_taken_for_loopback(host):
    with pytest.raises(InvalidInput, match="which is not an address"):
        is_loopback(host)


def test_the_url_is_what_callers_type():
    assert url_of("127.0.0.1", (), 8700, has_tls=False) == "http://127.0.0.1:8700"
    assert url_of("::1", (), 8700, has_tls=True) == "https://[::1]:8700"
    assert url_of("0.0.0.0", ("models.example", "b"), 443, has_tls=True) == "https://models.example:443"


# ---- policies


@pytest.fixture
def front(clock):
    world = World()
    world.replica("1")
    world.route("1")
    return GatewayFront(
        world.plane,
        Access(clock, closed(granted(KEYS[0], "ada", ("m",)), granted(KEYS[1], "bob", ("other",)))),
        clock,
        max_body_bytes=1000,
        receive_s=8.0,
        host="127.0.0.1",
    )


def routes(front):
    """Return each path of a gateway, with its method."""
    return {path: method for path, (method, _) in (*front._pages.items(), *front._paths.items())}


def head(path, method="GET", key=None, **headers):
    made = Head()
    made.method = method
    made.target = path.format(endpoint="m", number="1").encode()
    made.headers = {b"host": b"127.0.0.1"} | {name.encode(): value for name, value in headers.items()}
    if key is not None:
        made.headers[b"authorization"] = bearer(key)
    return made


@pytest.mark.capability("Z2")
def test_every_path_of_the_gateway_has_a_policy_and_every_policy_a_path(front):
    assert set(routes(front)) == set(POLICIES)


def test_a_path_without_a_policy_stops_the_start(front, clock, monkeypatch):
    for path in routes(front):
        monkeypatch.setattr(module, "POLICIES", {p: policy for p, policy in POLICIES.items() if p != path})
        with pytest.raises(Internal, match="has no policy that says who may use it") as caught:
            GatewayFront(front.plane, front.access, clock, max_body_bytes=1, receive_s=1.0, host="127.0.0.1")
        assert path in caught.value.message
    with pytest.raises(Internal):
        check_policies(["/new/page"])


def test_only_health_is_open_and_an_endpoints_paths_need_a_key_for_it(front):
    open_paths = {path for path, policy in POLICIES.items() if policy == "open"}
    assert {"/v2/health/live", "/v2/health/ready"} <= open_paths
    assert not any("{endpoint}" in path or "metrics" in path for path in open_paths)
    assert all(POLICIES[path] == "endpoint" for path in POLICIES if "{endpoint}" in path)
    for path, method in routes(front).items():
        without = front.admit(head(path, method))
        wrong = front.admit(head(path, method, KEYS[3]))
        other = front.admit(head(path, method, KEYS[1]))
        right = front.admit(head(path, method, KEYS[0]))
        codes = [error and error.code for error in (without, wrong, other, right)]
        expected = {
            "open": [None, None, None, None],
            "key": ["unauthorized", "unauthorized", None, None],
            "endpoint": ["unauthorized", "unauthorized", "forbidden", None],
        }[POLICIES[path]]
        assert codes == expected, path


def test_unknown_paths_and_names_are_told_to_holders_of_keys_only(front):
    for path in (
        "/nothing",
        "/v2/nothing",
        "/v2/models",
        "/predict",
        "/predict/a/b",
        "/v2/models/m/versions/1/x",
        "//",
    ):
        assert front.admit(head(path)).code == "unauthorized"
        assert front.admit(head(path, key=KEYS[0])) is None, "then it is a 404"
    for name in ("nobody", "other", "%2e%2e", "m%2Fversions%2F1", "M"):
        for path in (f"/predict/{name}", f"/v2/models/{name}/infer", f"/v2/models/{name}"):
            found = front.admit(head(path, "POST", KEYS[0]))
            assert found.code == "forbidden", f"whether {name} exists is not told"


class Answered:
    """An exchange that keeps its answer."""

    def __init__(self, head):
        self.head, self.body, self.status, self.on_cancel = head, b"", 0, None

    def respond_json(self, status, value, headers=""):
        self.status, self.value, self.headers = status, value, headers

    def respond(self, status, pieces, headers=""):
        self.status, self.value, self.headers = status, pieces, headers


def asked(front, head):
    exchange = Answered(head)
    front.handle(exchange)
    return exchange


def test_a_head_that_was_admitted_before_is_looked_at_again_under_new_rules(front):
    known = head("/v2/models/m", key=KEYS[0])
    assert front.admit(known) is None
    assert asked(front, known).status == 200
    front.access.set(closed())
    found = asked(front, known)
    assert (found.status, found.value["code"]) == (401, "unauthorized")
    assert found.headers == "www-authenticate: Bearer\r\n"
    assert asked(front, known).status == 401, "and again"
    front.access.set(closed(granted(KEYS[0], "ada", ("m",))))
    assert asked(front, known).status == 200


def test_a_head_that_was_admitted_before_ends_with_its_key(front, clock):
    front.access.set(closed(granted(KEYS[0], "ada", ("m",), expires=clock.now() + 10)))
    known = head("/v2/models/m", key=KEYS[0])
    assert asked(front, known).status == 200
    clock.advance(11)
    assert asked(front, known).status == 401
    assert asked(front, known).status == 401


def test_a_head_that_nobody_has_looked_at_is_not_answered(front):
    assert asked(front, head("/v2/models/m")).status == 401
    assert asked(front, head("/v2/models/m", key=KEYS[1])).status == 403
    front.access.set(None)
    found = asked(front, head("/v2/models/m", key=KEYS[0]))
    assert (found.status, found.headers) == (503, "retry-after: 1\r\n")
    assert asked(front, head("/v2/health/live")).status == 200


def test_lists_show_a_caller_only_what_it_may_use(front):
    def listed(key):
        index = asked(front, head("/", key=key)).value["endpoints"]
        repository = asked(front, head("/v2/repository/index", "POST", key)).value
        assert list(index) == [entry["name"] for entry in repository]
        return list(index)

    assert listed(KEYS[0]) == ["m"]
    assert listed(KEYS[1]) == []


def test_refusals_are_counted_by_reason_and_not_by_caller(front):
    asked(front, head("/v2/models/m"))
    asked(front, head("/v2/models/m", key=KEYS[1]))
    text = front.plane.counters.expose()[0].decode()
    assert 'argosy_refused_total{reason="unauthorized"} 1.0' in text
    assert 'argosy_refused_total{reason="forbidden"} 1.0' in text


def test_names_given_to_the_gateway_may_stand_in_host_and_nothing_else(front, clock):
    access = Access(clock, OPEN)
    open_front = GatewayFront(
        front.plane,
        access,
        clock,
        max_body_bytes=1,
        receive_s=1.0,
        host="0.0.0.0",
        hosts=("Models.example", "10.0.0.7"),
    )
    for name in (b"models.example", b"MODELS.example:8700", b"10.0.0.7", b"localhost:1", b"[::1]:8700"):
        assert open_front.admit(head("/", host=name)) is None, name
    for name in (b"evil.example", b"0.0.0.0", b"models.example.evil", b"a.models.example", b""):
        assert open_front.admit(head("/", host=name)).code == "foreign_host"
    refused_origin = open_front.admit(head("/", host=b"models.example", origin=b"https://evil.example"))
    assert refused_origin.code == "foreign_origin"
    assert open_front.admit(head("/", host=b"models.example", origin=b"https://models.example")) is None


def test_no_error_tells_what_was_sent_as_a_key(front):
    secret = "argosy_aaaaaaaa_" + "b" * 52
    made = head("/v2/models/m")
    made.headers[b"authorization"] = f"Bearer {secret}".encode()
    found = asked(front, made)
    assert found.status == 401
    assert secret[20:] not in json.dumps(found.value) + found.headers
