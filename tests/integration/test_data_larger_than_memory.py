"""What a data set takes in memory while it is made and trained on, against what it takes on the disk."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.capability("D1", "T6")
MEGABYTE = 1 << 20
ROWS, COLUMNS = 400_000, 200

CHILD = """
import json, sys, threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from argosy.data import arrange
from argosy.data.config import DataConfig
from argosy.data.dataset import Dataset, batches, build_dataset
from argosy.data.scratch import Scratch
from argosy.train import samples as samples_module
from argosy.train.samples import StreamedSamples, samples_of

folder, kind, rows, columns = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def held():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


names = [f"c{number}" for number in range(columns)]
draw = np.random.default_rng(0)
schema = pa.schema([*((name, pa.float32()) for name in names), ("label", pa.int64())])
with parquet.ParquetWriter(folder / "d.parquet", schema, use_dictionary=False, compression="none") as writer:
    for start in range(0, rows, 20_000):
        values = draw.normal(size=(columns, 20_000)).astype(np.float32)
        label = (values[0] > 0).astype(np.int64)
        writer.write_table(pa.Table.from_arrays([*map(pa.array, values), pa.array(label)], schema=schema), 200_000)
del values, label
pa.default_memory_pool().release_unused()

most, over = [0], threading.Event()
before = held()


def watch():
    while not over.wait(0.002):
        most[0] = max(most[0], held() - before)


threading.Thread(target=watch, daemon=True).start()
arrange.MOST_FITTED_BYTES = 16 << 20
samples_module.HELD_BYTES = 0
scratch = Scratch(folder, held_bytes=16 << 20) if kind == "pieces" else Scratch()
build_dataset(DataConfig(train="d.parquet"), folder, scratch=scratch).save(folder / "dataset")
made = most[0]
before = held()
most[0] = 0
dataset = Dataset.load(folder / "dataset")
samples = samples_of(dataset, torch.float32)
assert isinstance(samples, StreamedSamples)
seen = 0
for chosen in batches(len(samples), 512, seed=0, epoch=0, rank=1, world_size=2):
    (x,) = samples.batch(torch.from_numpy(chosen))
    assert x.shape == (len(chosen), columns)
    alike = (x[:, 0] > 0) == (samples.y[torch.from_numpy(chosen)] > 0)
    assert alike.double().mean() > 0.98, "rows have the labels of others"  # the mean was of some rows only
    seen += len(chosen)
over.set()
size = sum(path.stat().st_size for path in (folder / "dataset").rglob("*") if path.is_file())
print(json.dumps({"made": made, "trained": most[0], "size": size, "seen": seen, "rows": len(samples)}))
"""


def measured(folder, kind):
    found = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), kind, str(ROWS), str(COLUMNS)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_a_table_is_made_and_trained_on_in_a_fraction_of_the_memory_it_would_take(tmp_path):
    found = measured(tmp_path, "pieces")
    assert found["size"] > 4 * ROWS * COLUMNS
    assert found["rows"] // 2 == found["seen"], "each of two ranks sees its half"
    assert found["made"] < 170 * MEGABYTE, "320 MB of rows"
    assert found["trained"] < 60 * MEGABYTE
