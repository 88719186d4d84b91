"""Who is measured: how each is started, in which environment, and with which settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from training.tasks import RANKS

HERE = Path(__file__).parent
PLAIN = ("torch", "numpy", "safetensors")
"""What every peer's environment holds beside its own package."""
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "--standalone")
MALLOC = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1099511627776:glibc.malloc.trim_threshold=1099511627776"
    ":glibc.malloc.top_pad=67108864:glibc.malloc.hugetlb=1"
}
"""The memory settings that Argosy starts its ranks with."""

DATA_PARALLEL, LIMIT, MALLOC_LIMIT, DDP, WHOLE = "argosy", "limit", "limit-malloc", "ddp", "threads"
BATCH_NORM = "each rank normalizes by its own part of the batch"
DDP_SETTINGS = (("static_graph=yes",), ("static_graph=no",))


@dataclass(frozen=True)
class Contender:
    """One way to train. `settings` are tried one after the other where there are several, and the best is used."""

    name: str
    title: str
    environment: str
    packages: tuple[str, ...] = ()
    script: str = ""
    launch: tuple[str, ...] = ()
    """What stands between `python` and the script."""
    settings: tuple[tuple[str, ...], ...] = ((),)
    variables: Mapping[str, str] = field(default_factory=dict)
    strategy: str = ""
    """Argosy's name for it; it takes part as soon as Argosy knows that name."""
    train: Mapping[str, Any] = field(default_factory=dict)
    exchanges: bool = True
    note: str = ""

    @property
    def is_argosy(self) -> bool:
        """Whether this is one of Argosy's strategies."""
        return bool(self.strategy)

    def command(self, python: Path, out: Path, task: Path, settings: tuple[str, ...] = ()) -> list[str]:
        """Return the command of a turn."""
        script = HERE / ("argosy_rank.py" if self.is_argosy else f"peers/{self.script}")
        return [str(python), *self.launch, str(script), str(out), str(task), *(settings or self.settings[0])]


def _argosy(name: str, title: str, strategy: str, note: str = "", **train: Any) -> Contender:
    settings = {"strategy": strategy, "workers": RANKS, **train}
    return Contender(name, title, "argosy", strategy=strategy, train=settings, note=note)


CONTENDERS = (
    _argosy(DATA_PARALLEL, "**Argosy, data-parallel**", "data-parallel"),
    Contender(
        LIMIT,
        "limit: two plain loops that exchange nothing",
        "train-torch",
        script="alone.py",
        settings=((str(RANKS),),),
        exchanges=False,
    ),
    _argosy("argosy-server", "**Argosy, parameter-server**", "parameter-server"),
    Contender(
        DDP,
        "PyTorch DDP",
        "train-torch",
        script="ddp.py",
        launch=TORCHRUN,
        settings=(*DDP_SETTINGS, ("static_graph=yes", "bucket_cap_mb=100")),
        note=f"gloo, gradient_as_bucket_view; {BATCH_NORM}",
    ),
    _argosy("argosy-sharded", "**Argosy, sharded**", "sharded"),
    _argosy(
        "argosy-local", "**Argosy, local-sgd**", "local-sgd", "exchanges every few steps only, so it learns otherwise"
    ),
    Contender(
        "accelerate",
        "Accelerate",
        "train-accelerate",
        ("accelerate",),
        "accelerate_loop.py",
        TORCHRUN,
        DDP_SETTINGS,
        note=f"wraps DDP over gloo; {BATCH_NORM}",
    ),
    Contender(
        "fabric",
        "Lightning Fabric",
        "train-lightning",
        ("lightning",),
        "fabric_loop.py",
        settings=DDP_SETTINGS,
        note=f"wraps DDP over gloo; {BATCH_NORM}",
    ),
    Contender(
        MALLOC_LIMIT,
        "limit with Argosy's memory settings",
        "train-torch",
        script="alone.py",
        settings=((str(RANKS),),),
        variables=MALLOC,
        exchanges=False,
    ),
    Contender(
        WHOLE,
        "one process with two threads",
        "train-torch",
        script="alone.py",
        settings=(("1",),),
        variables={"OMP_NUM_THREADS": str(RANKS)},
        note="the whole batch at once",
    ),
    Contender(
        "fsdp",
        "PyTorch FSDP2",
        "train-torch",
        script="fsdp.py",
        launch=TORCHRUN,
        settings=(("reshard=no",), ("reshard=yes",)),
        note=f"gloo; layers of half a million parameters and more sharded one by one; {BATCH_NORM}",
    ),
    Contender(
        "ray-train",
        "Ray Train",
        "train-ray",
        ("ray[train]",),
        "ray_train.py",
        settings=DDP_SETTINGS,
        note=f"wraps DDP over gloo; {BATCH_NORM}",
    ),
    Contender(
        "rpc",
        "parameter server over torch RPC",
        "train-torch",
        script="rpc_server.py",
        launch=("-m", "torch.distributed.run", "--nproc-per-node", str(RANKS + 1), "--standalone"),
        note=f"synchronous, one server; {BATCH_NORM}",
    ),
    Contender(
        "ray-server",
        "parameter server of Ray actors",
        "train-ray",
        ("ray[train]",),
        "ray_server.py",
        note=f"synchronous, one server; {BATCH_NORM}",
    ),
)


def turned(contender: Contender, settings: tuple[str, ...]) -> Contender:
    """Return a contender with one of its settings only."""
    return replace(contender, settings=(settings,))
