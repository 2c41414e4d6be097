"""Raw tables read back, those from before a column came too."""

from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from compress.errors import ArtifactError
from experiments.coded_table import CodedRow
from experiments.raw_table import read_raw, to_csv

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Row:
    name: str
    size: int
    later: float | None = None


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows_come_back(tmp_path):
    rows = [Row("a", 1, 0.5), Row("b", 2)]
    path = write(tmp_path / "raw.csv", to_csv(["name", "size", "later"], map(asdict, rows)).strip())
    assert read_raw(path, Row) == rows


def test_a_column_that_came_later_may_be_missing(tmp_path):
    assert read_raw(write(tmp_path / "raw.csv", "size,name", "1,a"), Row) == [Row("a", 1)]


@pytest.mark.parametrize("header", ["name,later", "name,size,other", "name,size,size", ""])
def test_other_columns_are_refused(tmp_path, header):
    with pytest.raises(ArtifactError, match="not a table of Row"):
        read_raw(write(tmp_path / "raw.csv", header, "1,1,1"), Row)


@pytest.mark.parametrize("name", ["record_lenet300", "record_lenet5", "cifar10_coded", "sts_minilm_coded"])
def test_tables_of_files_from_before_their_sizes_were_told_are_read(name):
    rows = read_raw(ROOT / "results" / name / "raw.csv", CodedRow)
    assert rows
    assert all(row.coded_bytes > 0 for row in rows)
