"""Argosy's autoscaler and a rule on average use, side by side on the same simulated traffic.

    python benchmarks/autoscaling.py     some ten minutes; writes results/autoscaling.{json,md}

Simulated are requests, replicas and the clock; the queue is the gateway's own, the autoscaler the controller's own (see
`scaling_simulation.py`). The plain rule is that of Kubernetes' horizontal autoscaler with its documented defaults and a
target of 80 %. Both get the same requests at the same times, and at most 16 replicas.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

from scaling_simulation import Argosy, Bursts, Model, Step, Swings, Utilisation, World, poisson

RESULTS = Path(__file__).parent / "results"
QUICK = Model(run_s=0.01, row_s=0.01)
USUAL = Model(run_s=0.1, row_s=0.1)
SLOW = Model(run_s=1.0, row_s=1.0, cold_s=5.0)
BATCHED = Model(run_s=0.02, row_s=0.002, batch=32)
MODELS = {"10 ms": QUICK, "100 ms": USUAL, "1 s": SLOW, "20 ms, batches of 32": BATCHED}
HEAD = """# Autoscaling, simulated

`{command}` at {commit}, Python {python}; {seeds} seeds, {minutes:g} minutes of each noisy load, {took:.0f} s in all.

Simulated are requests, replicas and the clock; the queue is the gateway's own, the autoscaler the controller's own,
looked at every 0.3 s. "use 80 %" is the rule of Kubernetes' horizontal autoscaler with its documented defaults: a look
every 15 s, a tolerance of 10 %, upwards by doubling or 4, downwards to the highest of 300 s, never to none. Both have
the same queue, which may hold what deadlines allow, at most 2048, while replicas can still be added. A replica takes
its first request 2 s after its start, with runs of 1 s after 5 s. A request that waits for 30 s is too late.
"Reversals" is how often the number turned from growing to falling or back. Of the times to answer, the seeds' median is
shown. Not simulated: that replicas share cores, and how long they take to drain.

"""


def scenarios(seed, long_s):
    """Yield name, model, arrivals, seconds, and settings of each scenario."""
    for name, model in MODELS.items():
        c = model.capacity
        times = poisson(Step(0.14 * c, 1.4 * c, 60), seed, 180)
        yield f"10x, to twice the target; runs of {name}", model, times, 180, {}
    for name in ("100 ms", "1 s"):
        c = MODELS[name].capacity
        times = poisson(Step(0.7 * c, 7 * c, 60), seed, 180)
        yield f"10x, from one full replica to ten; runs of {name}", MODELS[name], times, 180, {}
    for load in (0.65, 1.35, 2.8):
        for name in ("100 ms", "1 s"):
            times = poisson(load * MODELS[name].capacity, seed, long_s)
            start = {"start": max(1, round(load))}
            yield f"noise: {load:g} replicas of work; runs of {name}", MODELS[name], times, long_s, start
    rate = 1.35 * USUAL.capacity
    times = Bursts(rate, 8).times(seed, long_s)
    yield "bursts of 8, half of the requests; runs of 100 ms", USUAL, times, long_s, {"start": 2}
    times = poisson(Swings(rate, 120), seed, long_s)
    yield "swings by half every minute; runs of 100 ms", USUAL, times, long_s, {"start": 2}
    times = poisson(Step(7, 56, 300, 900), seed, 2400)
    yield "8x for ten minutes, then back; runs of 100 ms", USUAL, times, 2400, {}
    few = iter([100.0, 100.1, 100.2, 1000.0])
    yield "four requests in half an hour, from nothing", USUAL, few, 1800, {"low": 0, "start": 0}


def measure(seeds, long_s):
    """Return a row for each scenario and rule, summed up over the seeds."""
    rows = {}
    for seed in seeds:
        for make in (Argosy, Utilisation):
            for name, model, times, seconds, settings in scenarios(seed, long_s):
                start = max(settings.get("start", 1), 0 if make is Argosy else 1)
                found = World(model, make, times, low=settings.get("low", 1), start=start, seed=seed).run(seconds)
                row = rows.setdefault((name, make.name), {"asked": 0, "lost": 0, "median": [], "late": []})
                row["asked"] += found.asked
                row["lost"] += found.refused + found.late
                row["median"].append(found.wait(0.5))
                row["late"].append(found.wait(0.99))
                row["reversals"] = max(row.get("reversals", 0), found.reversals)
                row["replicas"] = row.get("replicas", 0.0) + found.replica_s / seconds / len(seeds)
                row["most"] = max(row.get("most", 0), *(n for _, n in found.numbers))
                print(f"{seed}  {make.name:9} {name:60} lost {found.refused + found.late:6}", flush=True)
    return rows


def table(rows):
    """Return the rows as a table, the rules of one load beside each other."""
    lines = [
        "| load | rule | requests | refused or late | median | 99 % in | reversals, at worst | replicas: mean | most |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    loads = list(dict.fromkeys(name for name, _ in rows))
    for (name, rule), row in sorted(rows.items(), key=lambda item: loads.index(item[0][0])):
        median, late = (sorted(row[what])[len(row[what]) // 2] for what in ("median", "late"))
        lines.append(
            f"| {name} | {rule} | {row['asked']} | {row['lost']} | {median:.3g} s | {late:.3g} s | {row['reversals']} "
            f"| {row['replicas']:.2f} | {row['most']} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=60, help="length of the noisy loads")
    parser.add_argument("--quick", action="store_true", help="one seed, ten minutes, and nothing is written")
    given = parser.parse_args()
    seeds, minutes = (1, 10.0) if given.quick else (given.seeds, given.minutes)
    began = time.monotonic()
    rows = measure(range(1, seeds + 1), 60 * minutes)
    text = table(rows)
    print(text)
    if given.quick:
        return
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    head = HEAD.format(
        command=" ".join(["python benchmarks/autoscaling.py", *sys.argv[1:]]),
        commit=asked.stdout.strip(),
        python=platform.python_version(),
        seeds=seeds,
        minutes=minutes,
        took=time.monotonic() - began,
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "autoscaling.md").write_text(head + text + "\n")
    plain = [{"load": name, "rule": rule, **row} for (name, rule), row in rows.items()]
    (RESULTS / "autoscaling.json").write_text(json.dumps({"rows": plain}, indent=1) + "\n")


if __name__ == "__main__":
    main()
