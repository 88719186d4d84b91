"""What it costs local SGD to use deltas late: excess over the optimum of a problem whose optimum is known.

    python benchmarks/local_sgd.py     a quarter of a minute; writes results/local_sgd.{json,md}

Least squares with 20 features of unequal size, 200 noisy samples on each of two ranks, batches of 8, 20 steps a round.
Ranks are threads; nothing is timed, so any machine gives the same figures. Medians over 5 seeds.
"""

import json
import threading
from pathlib import Path

import numpy as np

from argosy.train.network.outer import AVERAGING, DILOCO, LocalRounds, OuterStep
from argosy.train.network.reductions import PlainReduction
from argosy.train.transport import MemoryTransport

RESULTS = Path(__file__).parent / "results"
RANKS, FEATURES, SAMPLES, BATCH, INTERVAL, RATE, NOISE = 2, 20, 200, 8, 20, 0.02, 0.3
LOOKS = (400, 700, 1000, 2000)
OVERLAPS = {
    "waiting for the exchange": {"overlap": "none"},
    "delayed by 4 steps": {"overlap": "delayed", "delay": 4},
    "eager": {"overlap": "eager"},
    "delayed by the whole round": {"overlap": "delayed"},
}
STEPS = {"plain averages": AVERAGING, "DiLoCo": DILOCO}


def train(step: OuterStep, overlap: dict, seed: int) -> list[float]:
    """Return how much greater the mean square is than at the optimum, after each number of steps in `LOOKS`."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(RANKS, SAMPLES, FEATURES)) * np.linspace(0.2, 1.5, FEATURES)
    y = x @ draw.normal(size=FEATURES) + NOISE * draw.normal(size=(RANKS, SAMPLES))
    all_x = x.reshape(-1, FEATURES)
    optimum = np.linalg.lstsq(all_x, y.reshape(-1), rcond=None)[0]
    found: list[float] = []

    def work(transport: MemoryTransport) -> None:
        rank, parameters = transport.rank, np.zeros(FEATURES)
        batches = np.random.default_rng([seed, rank])
        rounds = LocalRounds(
            parameters, PlainReduction(transport), world_size=RANKS, interval=INTERVAL, step=step, **overlap
        )
        for count in range(1, LOOKS[-1] + 1):
            rows = batches.integers(0, SAMPLES, BATCH)
            parameters -= RATE * x[rank, rows].T @ (x[rank, rows] @ parameters - y[rank, rows]) / BATCH
            rounds.step_done(parameters)
            if rank == 0 and count in LOOKS:
                found.append(float(np.mean((all_x @ (rounds.common - optimum)) ** 2)))

    threads = [threading.Thread(target=work, args=(each,)) for each in MemoryTransport.group(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def main() -> None:
    """Train with everything, print, write."""
    rows = []
    for name, step in STEPS.items():
        for late, overlap in OVERLAPS.items():
            medians = np.median([train(step, overlap, seed) for seed in range(5)], axis=0)
            rows.append({"step": name, "deltas": late, "excess": medians.tolist()})
    lines = [f"| outer step | deltas | {' | '.join(f'{look} steps' for look in LOOKS)} |", "|---" * 6 + "|"]
    lines += [f"| {r['step']} | {r['deltas']} | {' | '.join(f'{e:.2g}' for e in r['excess'])} |" for r in rows]
    table = "\n".join(lines)
    print(table)
    (RESULTS / "local_sgd.md").write_text(f"# Late deltas\n\n`python benchmarks/local_sgd.py`\n\n{table}\n")
    (RESULTS / "local_sgd.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
