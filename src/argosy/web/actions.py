"""What can be asked for on the page: the commands of the command line, with the same checks and the same entries."""

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from argosy.cluster.launcher import Launcher
from argosy.core.clock import Clock
from argosy.core.config import Settings
from argosy.core.errors import Denied, NotFound
from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import RolloutConfig
from argosy.operate.processes import start_controller
from argosy.operate.transactions import Accepted
from argosy.operate.view import EndpointView, SystemView
from argosy.registry.registry import Registry, open_registry

Role = Literal["viewer", "operator"]
"""viewer: looks. operator: acts too. The page runs as whoever started it, and can do no more than they could."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be done to an endpoint."""

    name: str
    label: str
    icon: str
    asks: str
    """What is said before it is done; `{endpoint}` and the fields of `_facts` are filled in."""
    command: str
    """The same on the command line."""
    fits: Callable[[EndpointView], bool]
    """Whether it means anything for this endpoint now."""
    run: Callable[[Registry, str], Accepted]
    is_grave: bool = False
    """Whether it takes something away from callers, so that its button looks like it."""


def _in_rollout(endpoint: EndpointView) -> bool:
    return endpoint.rollout is not None and endpoint.rollout.phase != d.ROLLING_BACK


def _can_abort(endpoint: EndpointView) -> bool:
    return _in_rollout(endpoint) and endpoint.rollout is not None and bool(endpoint.rollout.base)


def _can_return(endpoint: EndpointView) -> bool:
    last = endpoint.last
    was_left = last is not None and (last.outcome == d.ROLLED_BACK or last.kind == d.UNDO)
    has_former = any(version.role == "former" for version in endpoint.versions)
    return endpoint.rollout is None and endpoint.state != "stopped" and has_former and not was_left


def _can_pause(endpoint: EndpointView) -> bool:
    return _in_rollout(endpoint) and endpoint.rollout is not None and not endpoint.rollout.paused_by


def _can_resume(endpoint: EndpointView) -> bool:
    return endpoint.rollout is not None and bool(endpoint.rollout.paused_by)


ACTIONS: tuple[Action, ...] = (
    Action(
        name="promote",
        label="Promote now",
        icon="arrow_upward",
        asks="All requests of '{endpoint}' go to {new} now, whatever the evidence says.",
        command="argosy promote {endpoint}",
        fits=_in_rollout,
        run=commands.promote,
    ),
    Action(
        name="pause",
        label="Pause rollout",
        icon="pause",
        asks="Shares and time limits of '{endpoint}' stand still. {new} is still taken back if the evidence says so.",
        command="argosy pause {endpoint}",
        fits=_can_pause,
        run=commands.pause,
    ),
    Action(
        name="resume",
        label="Resume rollout",
        icon="play_arrow",
        asks="The rollout of '{endpoint}' goes on where it was paused.",
        command="argosy resume {endpoint}",
        fits=_can_resume,
        run=commands.resume,
    ),
    Action(
        name="abort",
        label="Abort rollout",
        icon="undo",
        asks="The rollout ends. '{endpoint}' stays with {current}; no request goes to {new} any more.",
        command="argosy abort {endpoint}",
        fits=_can_abort,
        run=commands.abort,
    ),
    Action(
        name="undo",
        label="Undo last rollout",
        icon="undo",
        asks="'{endpoint}' returns from {current} to {former}, which is kept warm, at once and without a canary.",
        command="argosy rollback {endpoint}",
        fits=_can_return,
        run=commands.rollback,
    ),
    Action(
        name="remove",
        label="Remove endpoint",
        icon="delete",
        asks="'{endpoint}' is not served any more: callers get an error. Its versions stay.",
        command="argosy endpoints remove {endpoint}",
        fits=lambda _: True,
        run=commands.remove,
        is_grave=True,
    ),
)
"""In the order in which they are offered. Each checks again by itself when it is done, as the world may have moved."""


def question(action: Action, endpoint: EndpointView) -> str:
    """Return what the user is asked before `action` is done."""
    return action.asks.format(endpoint=endpoint.name, **_facts(endpoint))


def _facts(endpoint: EndpointView) -> Mapping[str, str]:
    by_role = {version.role: f"'{version.ref}'" for version in endpoint.versions}
    nothing = "nothing"
    new = f"'{endpoint.rollout.to}'" if endpoint.rollout else nothing
    return {
        "current": by_role.get("current", nothing),
        "new": by_role.get("new", new),
        "former": by_role.get("former", nothing),
    }


class Operator:
    """Does what was asked on the page. Each time with a registry of its own, as a command does."""

    def __init__(self, settings: Settings, launcher: Launcher, clock: Clock, role: Role = "operator") -> None:
        self._settings = settings
        self._launcher = launcher
        self._clock = clock
        self.role = role

    def act(self, name: str, endpoint: str) -> Accepted:
        """Do an action by its name. Raises Denied for a viewer, NotFound, and what the command raises."""
        action = next((action for action in ACTIONS if action.name == name), None)
        if action is None:
            known = [action.name for action in ACTIONS]
            raise NotFound(f"there is no action '{name}'; there is: {', '.join(known)}", known=known)
        return self._do(lambda registry: action.run(registry, endpoint))

    def deploy(self, ref: str, name: str, rollout: RolloutConfig | None) -> Accepted:
        """Deploy a version: by canary steps with `rollout`, else by a switch. Raises what `commands.deploy` raises."""
        return self._do(lambda registry: commands.deploy(registry, ref, name=name, rollout=rollout))

    def bring_back(self) -> Accepted:
        """Bring back what was deployed, and the controller, as `argosy up`."""
        return self._do(commands.bring_back)

    def _do(self, command: Callable[[Registry], Accepted]) -> Accepted:
        if self.role != "operator":
            raise Denied(
                "this page only looks", hint="start one that may act: argosy ui, without --read-only", code="read_only"
            )
        registry = open_registry(self._settings, self._clock)
        registry.log.refresh()
        accepted = command(registry)
        start_controller(self._settings, self._launcher)
        return accepted


def offered(endpoint: EndpointView, role: Role) -> list[Action]:
    """Return what can be done to an endpoint now."""
    return [action for action in ACTIONS if role == "operator" and action.fits(endpoint)]


def needs_controller(view: SystemView) -> bool:
    """Return whether something is wanted and nobody sees to it."""
    return view.controller == "down" and any(endpoint.state != "stopped" for endpoint in view.endpoints)
