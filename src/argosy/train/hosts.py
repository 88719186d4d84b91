"""Which hosts train together, and how they find each other. Imports nothing heavy: the job has no torch."""

import contextlib
from collections.abc import Iterator

import msgspec

from argosy.core.digest import digest_of
from argosy.core.errors import InvalidInput
from argosy.train.config import TrainConfig
from argosy.train.network.handshake import check_token, split_address
from argosy.train.network.rendezvous import Rendezvous, code_digest

JOIN_S = 600.0
"""How long hosts wait for each other: somebody may start them by hand, one after the other."""
_BETWEEN = ("auto", "data-parallel", "local-sgd", "parameter-server")
"""Strategies that work over several hosts."""


class Hosts(msgspec.Struct, frozen=True, kw_only=True):
    """The hosts of one training, and which of them this is. Each runs as many workers as the others."""

    count: int = 1
    number: int = 0
    """Of this host, from 0."""
    address: str = ""
    """`host:port` at which the first host listens and all find it."""
    token: str = ""
    """A word that these hosts know and nobody else."""
    patience_s: float = 30.0
    """How long the first host waits for a lost one to come back before all others go on without it."""

    def check(self, train: TrainConfig) -> None:
        """Raise InvalidInput for what can't be, before anything is started."""
        if self.count < 1 or not 0 <= self.number < self.count:
            raise InvalidInput(
                f"host {self.number} of {self.count} can't be", hint="count hosts from 0: --hosts 2 --host 1"
            )
        if self.count == 1:
            return
        split_address(self.address)
        check_token(self.token)
        if train.strategy not in _BETWEEN:
            raise InvalidInput(
                f"[train] strategy = {train.strategy!r} works on one host, not on {self.count}",
                hint=f"known over several hosts are: {', '.join(_BETWEEN)}",
                code="one_host_only",
            )
        if train.strategy == "parameter-server" and train.max_staleness != 0:
            raise InvalidInput(
                f"[train] max_staleness = {train.max_staleness!r} works on one host, not on {self.count}",
                hint='use strategy = "local-sgd" for hosts that don\'t wait for each other in every step',
                code="one_host_only",
            )
        workers = self.count * train.workers
        if train.optimizer != "gd" and workers > train.batch_size:
            raise InvalidInput(
                f"[train] batch_size = {train.batch_size} has too few samples for {workers} workers on "
                f"{self.count} hosts",
                hint="batch_size counts the samples of all workers of all hosts together; raise it",
            )

    @property
    def is_first(self) -> bool:
        """Whether this is the host that the others come to, whose settings count."""
        return self.number == 0

    @contextlib.contextmanager
    def open(self, made_by: str) -> Iterator[Rendezvous | None]:
        """Let the others come while it is open, if this is the first host of several.

        They are refused if what they would train (`made_by`) or their version of Argosy differs.
        """
        if self.count == 1 or not self.is_first:
            yield None
            return
        name, port = split_address(self.address)
        rendezvous = Rendezvous(
            self.count,
            token=self.token,
            digest=common_digest(made_by),
            host=name,
            port=port,
            patience_s=self.patience_s,
        )
        try:
            yield rendezvous
        finally:
            rendezvous.close()


def common_digest(made_by: str) -> str:
    """Return what all hosts of a training must agree on before they say anything else."""
    return digest_of({"made_by": made_by, "code": code_digest()})
