"""Where the gateway listens: what is refused when it is wished for, and when the gateway is started anew."""

from random import Random
from types import SimpleNamespace

import pytest

from argosy.cluster.memory import MemoryLauncher
from argosy.core.clock import FakeClock
from argosy.core.errors import InvalidInput, NotFound
from argosy.operate import access, commands
from argosy.operate import desired as d
from argosy.operate.desired import Desired
from argosy.operate.gateway_process import NAME, GatewayProcess
from argosy.operate.gateway_settings import GatewaySettings, check_host
from argosy.operate.memory import FakeGateway, FakeLog
from argosy.security.api_keys import make_key
from argosy.security.certificates import self_signed
from argosy.serve.access import AccessKey, AccessRules
from argosy.serve.control import LISTENING


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def registry(clock):
    return SimpleNamespace(log=FakeLog([], clock), versions=None)


@pytest.fixture
def files(tmp_path, clock):
    certificate, key = self_signed(["models.example"], clock.now(), 30)
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "key.pem").chmod(0o600)
    return str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")


def state(registry):
    found = Desired()
    registry.log.refresh()
    found.catch_up(registry.log)
    return found


# ---- wishes


@pytest.mark.capability("Z1")
def test_others_are_let_in_only_with_tls_and_a_key(registry, clock, files):
    public = {"host": "0.0.0.0", "hosts": ["models.example"], "clock": clock}
    with pytest.raises(InvalidInput, match="without TLS and access control"):
        commands.set_gateway(registry, **public)
    with pytest.raises(InvalidInput, match="without access control"):
        commands.set_gateway(registry, **public, tls=files)
    access.grant(registry, "ada", clock=clock)
    with pytest.raises(InvalidInput, match="without TLS"):
        commands.set_gateway(registry, **public)
    accepted = commands.set_gateway(registry, **public, tls=files, port=8443)
    assert accepted.summary == "the gateway will listen on 0.0.0.0:8443"
    found = state(registry).gateway
    assert found.url(8443) == "https://models.example:8443"
    with pytest.raises(InvalidInput, match="without TLS"):
        commands.set_gateway(registry, tls=("", ""))
    assert state(registry).gateway == found


def test_what_is_not_given_stays_as_it_is(registry, clock, files):
    commands.set_gateway(registry, port=8443, tls=files, hosts=["models.example"], clock=clock)
    commands.set_gateway(registry, grpc_port=-1, clock=clock)
    found = state(registry).gateway
    assert (found.port, found.grpc_port, found.tls_cert, found.hosts) == (8443, -1, files[0], ("models.example",))
    assert not commands.set_gateway(registry, port=8443, clock=clock).is_changed
    commands.set_gateway(registry, tls=("", ""), hosts=[], clock=clock)
    assert state(registry).gateway == GatewaySettings(port=8443, grpc_port=-1)


def test_settings_of_a_stopped_gateway_do_not_start_it(registry, clock):
    assert commands.set_gateway(registry, port=8123, is_wanted=False).is_changed
    assert not state(registry).is_running
    assert not commands.set_gateway(registry, port=8123, is_wanted=False).is_changed
    assert commands.set_gateway(registry, port=8123).is_changed
    assert state(registry).is_running
    assert commands.set_gateway(registry, port=8124, is_wanted=False).is_changed
    assert state(registry).is_running


def test_a_gateway_that_moves_to_another_address_takes_the_port_it_had_along(registry):
    commands.set_gateway(registry, port=0)
    registry.log.append(d.BOUND, "gateway", {"port": 8777})
    commands.set_gateway(registry, host="::1")
    assert state(registry).port == 8777
    commands.set_gateway(registry, host="127.0.0.1", port=0)
    assert (state(registry).port, state(registry).bound_port) == (0, 0)


def test_every_interface_is_nobodys_name(registry, clock, files):
    access.grant(registry, "ada", clock=clock)
    with pytest.raises(InvalidInput, match="every interface and nobody's name") as caught:
        commands.set_gateway(registry, host="0.0.0.0", tls=files, clock=clock)
    assert "--allow-host" in caught.value.hint


def test_a_certificate_must_be_for_every_name_callers_use(registry, clock, files):
    with pytest.raises(InvalidInput, match=r"is for 'models.example', not for 'other.example'"):
        commands.set_gateway(registry, tls=files, hosts=["models.example", "other.example"], clock=clock)
    with pytest.raises(InvalidInput, match=r"not for '127\.0\.0\.1'"):
        commands.set_gateway(registry, tls=files, clock=clock)
    clock.advance(31 * 86400)
    with pytest.raises(InvalidInput, match="expired"):
        commands.set_gateway(registry, tls=files, hosts=["models.example"], clock=clock)
    assert registry.log.head == 0


def test_a_certificate_without_its_key_is_refused(registry, clock, files):
    with pytest.raises(InvalidInput, match="certificate was given without its private key"):
        commands.set_gateway(registry, tls=(files[0], ""), clock=clock)


def test_the_private_key_does_not_go_to_the_log(registry, clock, files):
    commands.set_gateway(registry, tls=files, hosts=["models.example"], clock=clock)
    written = str([entry.data for entry in registry.log.entries()])
    assert files[1] in written
    assert "PRIVATE" not in written


@pytest.mark.parametrize("name", ["a b", "http://x", "x:80", "", ".", "a..b", "-a", "ä.example", "a" * 300, "x/y", "*"])
def test_what_cannot_stand_in_a_host_header_is_no_name(name):
    with pytest.raises(InvalidInput, match="is not a host name"):
        check_host(name)


@pytest.mark.parametrize("name", ["models.example", "10.0.0.7", "2001:db8::1", "my_host", "a"])
def test_names_and_addresses_are_host_names(name):
    check_host(name)


def test_an_entry_with_a_wrong_field_changes_nothing():
    settings = GatewaySettings(host="10.0.0.7", tls_cert="/c", tls_key="/k", hosts=("a",))
    assert settings.updated({"tls_cert": None}) == settings
    assert settings.updated({"host": "127.0.0.1", "port": "8700"}) == settings
    assert settings.updated({"port": 1, "unknown": 2}).port == 1
    assert settings.updated(GatewaySettings().plain()) == GatewaySettings()


# ---- the process


class Kept:
    """A gateway process and its keeper."""

    def __init__(self, clock):
        self.clock = clock
        self.launcher = MemoryLauncher(clock)
        self.client = FakeGateway()
        self.client.is_alive = False
        self.desired = Desired()
        self.process = GatewayProcess(self.launcher, self.client, clock, self.config)

    def config(self, desired):
        return {**desired.gateway.plain(), "port": desired.bound_port or desired.port}

    def look(self):
        """One look of the controller, the process doing what it was started for."""
        info = self.launcher.get(NAME)
        if info is not None and info.alive:
            config = self.launcher.specs[NAME].config
            self.client.asked = {name: config[name] for name in LISTENING}
            self.client.port = config["port"] or self.client.port
            self.client.revive(info.pid, info.started)
        else:
            self.client.die()
        self.process.observe()
        self.process.ensure(self.desired)
        self.clock.advance(1.0)
        return self.launcher.get(NAME).pid


@pytest.fixture
def kept(clock):
    return Kept(clock)


def test_a_gateway_with_the_settings_that_are_wanted_is_left_alone(kept):
    first = kept.look()
    assert [kept.look() for _ in range(5)] == [first] * 5
    kept.desired.bound_port = kept.client.port
    assert kept.look() == first, "the port it was given is the one it is to keep"


@pytest.mark.parametrize(
    "change",
    [{"port": 9000}, {"host": "::1"}, {"tls_cert": "/c", "tls_key": "/k"}, {"hosts": ("a",)}, {"grpc_port": -1}],
)
def test_a_gateway_with_other_settings_is_started_anew_once(kept, change):
    first = kept.look()
    kept.look()
    kept.desired.gateway = GatewaySettings(**change)
    kept.look()
    second = kept.look()
    assert second != first
    assert [kept.look() for _ in range(5)] == [second] * 5
    assert kept.process.status is not None


def test_a_gateway_of_an_older_argosy_is_not_restarted_for_what_it_does_not_tell(kept, monkeypatch):
    first = kept.look()
    kept.look()
    kept.client.asked = {}
    kept.desired.gateway = GatewaySettings(hosts=("a",))
    kept.process.observe()
    kept.process.ensure(kept.desired)
    assert kept.launcher.get(NAME).pid == first


RULES = AccessRules(
    is_on=True,
    keys=(AccessKey(id=(key := make_key(Random(1).randbytes)).id, name="ada", digest=key.digest, endpoints=("*",)),),
)


def test_rules_are_given_once_and_again_to_a_gateway_that_lost_them(kept):
    kept.look()
    kept.look()
    assert kept.process.set_access(RULES)
    kept.process.observe()
    assert kept.process.set_access(RULES)
    assert kept.client.calls.count("set_access") == 1
    kept.client.rules = None
    kept.process.observe()
    assert kept.process.set_access(RULES)
    assert (kept.client.rules, kept.client.calls.count("set_access")) == (RULES, 2)


def test_rules_are_not_set_without_a_gateway(kept):
    assert not kept.process.set_access(RULES)
    kept.look()
    kept.look()
    kept.client.die()
    assert not kept.process.set_access(RULES)
    assert kept.process.status is None


def test_a_gateway_that_cannot_ask_for_keys_is_replaced_when_keys_are_needed(kept, monkeypatch):
    def unknown(rules):
        raise NotFound("the gateway can't be asked for 'set_access'", code="unknown_ask")

    first = kept.look()
    kept.look()
    monkeypatch.setattr(kept.client, "set_access", unknown)
    kept.client.rules = None
    kept.process.observe()
    assert not kept.process.set_access(AccessRules(is_on=False))
    assert kept.launcher.get(NAME).alive, "an open one may stay where no key is needed"
    assert not kept.process.set_access(RULES)
    assert not kept.launcher.get(NAME).alive
    assert kept.process.access_error.code == "unknown_ask"
    monkeypatch.undo()
    kept.look()
    assert kept.look() != first
    assert kept.process.set_access(RULES)
    assert kept.process.access_error is None
