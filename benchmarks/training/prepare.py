"""Everything that must be there before the first measurement: environments and tasks."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.environments import Failed, discard, environment, install_argosy, run, versions

from training.contenders import PLAIN, Contender
from training.tasks import Task

HERE = Path(__file__).parent
_KNOWN = (
    "import json\n"
    "from argosy.train.config import STRATEGY_NAMES, TrainConfig\n"
    "print(json.dumps([list(STRATEGY_NAMES), list(TrainConfig.__struct_fields__)]))"
)


@dataclass
class Prepared:
    """What the measurements need."""

    programs: dict[str, Path]
    """Of each environment that could be made."""
    versions: dict[str, dict[str, str]]
    tasks: dict[str, Path]
    strategies: list[str]
    """Those that this Argosy has."""
    settings: list[str]
    """Fields of this Argosy's `[train]`."""
    failed: dict[str, str]
    """Why a contender can't take part, by name."""

    def python(self, contender: Contender) -> Path:
        """Return the interpreter of a contender."""
        return self.programs[contender.environment] / "python"


def prepare(
    cache: Path, tasks: Sequence[Task], contenders: Sequence[Contender], *, source: str, plain: str, is_quick: bool
) -> Prepared:
    """Make it all below `cache`; a peer that can't be installed is left out, with the reason.

    `source` is a tree or requirement to install as Argosy, or the `bin` folder of an environment that has it; `plain`
    is the `bin` folder of one for peers that need nothing but PyTorch, or empty.
    """
    environments = cache / "environments"
    environments.mkdir(parents=True, exist_ok=True)
    is_made = (Path(source) / "python").exists()
    programs = {"argosy": Path(source).absolute() if is_made else install_argosy(environments, source)}
    failed: dict[str, str] = {}
    for contender in [each for each in contenders if not each.is_argosy]:
        name = contender.environment
        try:
            if plain and not contender.packages:
                programs[name] = Path(plain).absolute()
            if name not in programs:
                programs[name] = environment(environments, name, (*PLAIN, *contender.packages))
        except Failed as error:
            failed[contender.name] = str(error)
            print(f"{contender.name} is left out: {error}", flush=True)
    told = run([str(programs["argosy"] / "python"), "-c", _KNOWN], "Argosy could not be asked for its strategies")
    strategies, settings = json.loads(told)
    for contender in contenders:
        if contender.is_argosy and contender.strategy not in strategies:
            failed[contender.name] = f"Argosy has no strategy '{contender.strategy}' yet"
    return Prepared(
        programs,
        {name: versions(path) for name, path in programs.items()},
        {task.name: make(task, cache, programs["argosy"], is_quick=is_quick) for task in tasks},
        strategies,
        settings,
        failed,
    )


def make(task: Task, cache: Path, programs: Path, *, is_quick: bool) -> Path:
    """Return the folder of a task, after making it if it isn't there as it is described now."""
    plan = json.dumps(task.plain(is_quick=is_quick) | {"data": task.data}, sort_keys=True)
    sources = b"".join(path.read_bytes() for path in (HERE / "make.py", HERE / "peers" / "models.py"))
    wanted = hashlib.sha256(plan.encode() + sources).hexdigest()
    folder = cache / "training" / f"{task.name}{'-quick' if is_quick else ''}"
    made = folder / "made"
    if not made.exists() or made.read_text() != wanted:
        print(f"making task {task.name} ...", flush=True)
        discard(folder)
        command = [str(programs / "python"), str(HERE / "make.py"), str(folder), plan]
        run(command, f"the task '{task.name}' could not be made")
        made.write_text(wanted)
    return folder
