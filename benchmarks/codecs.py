"""How fast codecs are beside copying memory, and what they save and lose on numbers like those of a gradient.

    python benchmarks/codecs.py [--lock FILE]     half a minute; writes results/codecs.{json,md}

One thread. Every codec works through 80 MB of float32 in its chunks, and so does `memcpy`; they take turns, and each
figure is the median of the turns, in gigabytes of float32 per second of processor time.
"""

import argparse
import contextlib
import fcntl
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from argosy.train.network.codec import MAX_COUNT, Codec
from argosy.train.network.codecs import BlockInt8, Half, TopK

RESULTS = Path(__file__).parent / "results"
COUNT = 20_000_000
TURNS = 7


def codecs() -> dict[str, Codec]:
    """Return what is compared, by the name in the table."""
    by_chance = BlockInt8(512, generator=np.random.Generator(np.random.SFC64(0)))
    return {
        "fp16": Half(),
        "int8, blocks of 512": BlockInt8(512),
        "int8, blocks of 1024": BlockInt8(1024),
        "int8, blocks of 512, rounded by chance": by_chance,
        "top-k, 1 %": TopK(0.01),
    }


def gradient() -> np.ndarray:
    """Return numbers whose size differs from stretch to stretch, as in the layers of a model."""
    draw = np.random.default_rng(0)
    sizes = np.repeat(10.0 ** draw.uniform(-4, -1, 200), COUNT // 200)
    return (draw.standard_normal(COUNT, dtype=np.float32) * sizes).astype(np.float32)


def chunks(codec: Codec) -> list[tuple[slice, np.ndarray]]:
    """Return where each chunk is, and memory for its code."""
    found = []
    for start in range(0, COUNT, MAX_COUNT):
        where = slice(start, min(start + MAX_COUNT, COUNT))
        found.append((where, np.empty(codec.size_bytes(where.stop - where.start), np.uint8)))
    return found


def timed(work: Callable[[], None]) -> float:
    begun = time.thread_time()  # processor time: others on the machine matter less
    work()
    return 4 * COUNT / (time.thread_time() - begun) / 1e9


def measure() -> list[dict[str, Any]]:
    values, found = gradient(), np.zeros(COUNT, np.float32)
    made = {name: (codec, chunks(codec)) for name, codec in codecs().items()}
    speeds: dict[str, list[float]] = {}

    def encode(codec: Codec, parts: list[tuple[slice, np.ndarray]]) -> None:
        for where, data in parts:
            codec.encode(values[where], data)

    def decode(codec: Codec, parts: list[tuple[slice, np.ndarray]]) -> None:
        for where, data in parts:
            codec.decode(data, found[where])

    def copy() -> None:
        np.copyto(found, values)

    for _ in range(TURNS):
        speeds.setdefault("memcpy", []).append(timed(copy))
        for name, (codec, parts) in made.items():
            speeds.setdefault(f"{name} >", []).append(timed(lambda c=codec, p=parts: encode(c, p)))
            speeds.setdefault(f"{name} <", []).append(timed(lambda c=codec, p=parts: decode(c, p)))
    rows = [{"name": "memcpy", "encode_GB_s": statistics.median(speeds["memcpy"]), "share_sent": 1.0, "lost": 0.0}]
    for name, (codec, parts) in made.items():
        decode(codec, parts)
        rows.append(
            {
                "name": name,
                "encode_GB_s": statistics.median(speeds[f"{name} >"]),
                "decode_GB_s": statistics.median(speeds[f"{name} <"]),
                "share_sent": sum(data.size for _, data in parts) / (4 * COUNT),
                "lost": float(np.linalg.norm(found - values) / np.linalg.norm(values)),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | encode GB/s | decode GB/s | bytes sent | lost of the norm |", "|---|---|---|---|---|"]
    for row in rows:
        decode = f"{row['decode_GB_s']:.1f}" if "decode_GB_s" in row else ""
        sent, lost = f"{row['share_sent']:.1%}", f"{row['lost']:.2%}"
        lines.append(f"| {row['name']} | {row['encode_GB_s']:.1f} | {decode} | {sent} | {lost} |")
    return "\n".join(lines)


def processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    flags = " with AVX-512" if "avx512f" in Path("/proc/cpuinfo").read_text() else ""
    return (names[0].partition(":")[2].strip() if names else platform.machine()) + flags


@contextlib.contextmanager
def quiet_by(path: str) -> Iterator[None]:
    """Hold a lock while measuring, if one was named, so that several people can measure on one machine."""
    if not path:
        yield
        return
    with Path(path).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lock", default="", help="a file whose lock is held while measuring")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with quiet_by(asked.lock):
        rows = measure()
    machine = f"{processor()}, Python {platform.python_version()}, torch {torch.__version__}"
    says = f"`python benchmarks/codecs.py` on {machine}, one thread, per second of processor time."
    text = f"# Codecs\n\n{says}\n\n{table(rows)}\n"
    print(table(rows))
    (RESULTS / "codecs.md").write_text(text)
    (RESULTS / "codecs.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
