"""What counts as new data."""

import os

import numpy as np
import pytest

from argosy.core.errors import InvalidInput, NotFound
from argosy.operate.jobs.sources import DataWatch, count_rows, read_data, read_project

FILE = """[project]
name = "p"
[data]
train = "{train}"
[evaluate]
parity = ">= 0.9"
[rollout]
steps = [50]
dwell = "1s"
[update]
settle = "10s"
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "argosy.toml").write_text(FILE.format(train="rows.csv"))
    (tmp_path / "rows.csv").write_text("a,label\n1,0\n2,1\n")
    return read_project(tmp_path / "argosy.toml")


def test_data_counts_once_it_has_lain_still_and_is_read_once(project, monkeypatch):
    watch = DataWatch()
    assert watch.look(project, 0.0) is None
    assert watch.look(project, 9.9) is None
    first = watch.look(project, 10.0)
    assert first.rows == 3
    path = project.base / "rows.csv"
    path.write_text(path.read_text() + "3,0\n")
    assert watch.look(project, 11.0) is None, "it has just changed"
    path.write_text(path.read_text() + "4,0\n")
    assert watch.look(project, 20.0) is None, "it was still being written"
    second = watch.look(project, 30.0)
    assert (second.rows, second.digest != first.digest) == (5, True)
    monkeypatch.setattr("argosy.operate.jobs.sources.sha256_file", None)
    assert watch.look(project, 31.0) == second, "nothing was read again"


def test_the_same_bytes_written_again_are_no_new_data(project):
    watch = DataWatch()
    watch.look(project, 0.0)
    before = watch.look(project, 10.0)
    path = project.base / "rows.csv"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, (1, 1))
    assert watch.look(project, 20.0) is None
    assert watch.look(project, 30.0) == before


def test_a_folder_is_new_when_a_file_comes_goes_or_changes(tmp_path):
    (tmp_path / "argosy.toml").write_text(FILE.format(train="pictures"))
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    (tmp_path / "pictures" / "cat" / "1.png").write_bytes(b"1")
    project = read_project(tmp_path / "argosy.toml")
    seen = [read_data(project)]
    (tmp_path / "pictures" / "cat" / "2.png").write_bytes(b"2")
    seen.append(read_data(project))
    (tmp_path / "pictures" / "cat" / "2.png").write_bytes(b"3")
    seen.append(read_data(project))
    assert [state.rows for state in seen] == [1, 2, 2]
    assert len({state.digest for state in seen}) == 3


def test_data_and_files_that_are_gone_or_wrong_are_named(project):
    (project.base / "rows.csv").unlink()
    with pytest.raises(NotFound, match=r"rows\.csv"):
        DataWatch().look(project, 0.0)
    (project.base / "argosy.toml").write_text("[update]\non = ['moon']\n[project]\nname = 'p'")
    with pytest.raises(InvalidInput, match="moon"):
        read_project(project.base / "argosy.toml")
    with pytest.raises(NotFound, match=r"no 'gone\.toml'"):
        read_project(project.base / "gone.toml")


def test_data_elsewhere_cannot_be_watched_and_says_so(tmp_path):
    (tmp_path / "argosy.toml").write_text(FILE.format(train="s3://bucket/rows.csv"))
    with pytest.raises(InvalidInput, match="not on this machine"):
        DataWatch().look(read_project(tmp_path / "argosy.toml"), 0.0)


def test_the_projects_parity_bounds_the_rollouts_disagreement(project):
    assert project.rollout.tolerated_disagreement == pytest.approx(0.1)


def test_rows_are_counted_without_reading_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.zeros((37, 2, 2)), label=np.zeros(37))
    assert count_rows(tmp_path / "a.npz") == 37
    (tmp_path / "a.csv").write_text("a,b\n1,2")
    assert count_rows(tmp_path / "a.csv") == 2
    (tmp_path / "a.bin").write_bytes(b"?")
    assert count_rows(tmp_path / "a.bin") == -1
    (tmp_path / "broken.npz").write_bytes(b"PK no")
    assert count_rows(tmp_path / "broken.npz") == -1


def test_rows_of_parquet_come_from_its_footer(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"a": list(range(12))}), tmp_path / "a.parquet")
    assert count_rows(tmp_path / "a.parquet") == 12
