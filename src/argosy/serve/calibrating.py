"""The process that calibrates, `python -m argosy.serve.calibrating`: started by replicas and by `endpoints calibrate`.

It reads one `Request` from standard input, writes one profile to standard output, and ends when the other end of
standard input is closed, so it can't outlive whoever started it.
"""

import os
import sys
import threading

import msgspec

from argosy.cluster.machine import process_memory_bytes
from argosy.core.clock import Clock, SystemClock, SystemProcessorClock
from argosy.core.errors import ArgosyError
from argosy.core.logs import configure_logs
from argosy.serve.bench import EngineBench
from argosy.serve.calibrator import Calibrator, Loaded, Memory
from argosy.serve.control import ReplicaConfig
from argosy.serve.host import free_memory, this_host, worked_s
from argosy.serve.loading import Version, load
from argosy.serve.profile import Host, Profile, encode
from argosy.serve.samples import Samples
from argosy.serve.tuning import Request

_LOWEST = 19
_MOST_WAIT_S = 3.0
_WINDOW_S = 0.25
_BUSY_PART = 0.3


def main() -> int:
    """Answer one request."""
    # What libraries and the version's own code print must not get between the profile's bytes.
    answer = os.dup(1)
    os.dup2(2, 1)
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=Request)
    threading.Thread(target=_end_with_starter, name="starter", daemon=True).start()
    configure_logs(request.replica.log_level, process="calibration", replica=request.replica.id)
    if request.is_gentle:
        os.nice(_LOWEST)
        wait_for_quiet(ThisMachine(), SystemClock())
    try:
        profile = calibrate(request.replica)
    except ArgosyError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    with os.fdopen(answer, "wb") as stream:
        stream.write(encode(profile))
    return 0


def calibrate(config: ReplicaConfig) -> Profile:
    """Load a version and measure it; raises what loading raises."""

    def again(threads: int) -> Loaded:
        return measurable(load(msgspec.structs.replace(config, threads=threads)))

    def solo(threads: int) -> Loaded:
        # Whether a replica has room for it, that will tell.
        return measurable(load(msgspec.structs.replace(config, threads=threads), spinning=True))

    return Calibrator(config.digest, again, ThisMachine(), SystemClock(), load_solo=solo).full(threads=config.threads)


class ThisMachine:
    """The machine this process runs on."""

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or this_host()

    @property
    def host(self) -> Host:
        """Its name in profiles."""
        return self._host

    def memory(self) -> Memory:
        """Return what this process has, and what is free beside it."""
        return Memory(process_memory_bytes(os.getpid()), free_memory())

    def others_s(self) -> float:
        """Return the CPU seconds that all other processes have taken since some moment."""
        return worked_s() - SystemProcessorClock().process()


def wait_for_quiet(machine: ThisMachine, clock: Clock, *, most_s: float = _MOST_WAIT_S) -> None:
    """Return when other processes leave most of the machine free, or after `most_s`."""
    until = clock.monotonic() + most_s
    while clock.monotonic() < until:
        before = machine.others_s()
        clock.sleep(_WINDOW_S)
        if machine.others_s() - before < _BUSY_PART * machine.host.cores * _WINDOW_S:
            return


def measurable(version: Version) -> Loaded:
    """Return a loaded version with rows to run it on."""
    engine, manifest = version
    samples = Samples(manifest.signature, manifest.prepare, engine.examples)
    return Loaded(
        bench=EngineBench(engine.compute, samples, SystemClock(), SystemProcessorClock()),
        lengths=samples.lengths,
        is_batched=manifest.signature.is_batched,
        takes_texts=samples.takes_texts,
        # Python code holds the interpreter while it runs.
        is_shared=manifest.format != "python",
    )


def _end_with_starter() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
