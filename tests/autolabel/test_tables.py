"""Tables on disk: what was saved comes back, and a damaged file is one clear error."""

import numpy as np
import pytest

from autolabel.tables import FeatureTable, LabelTable
from compress.errors import ArtifactError
from compress.files import load_arrays, save_arrays

IDS = ("a:out[0]", "a:out[1]")
NAMES = ("unit_ids", "choices", "damage", "std_err", "lower", "upper", "source", "macs")


@pytest.fixture
def file(tmp_path):
    damage = np.array([[0.5], [np.nan]])
    table = LabelTable(IDS, ("removed",), damage, damage, damage, damage, np.array(["measured", "predicted"]), 3.0, 9.0)
    table.save(tmp_path / "labels.npz")
    loaded = LabelTable.load(tmp_path / "labels.npz")
    np.testing.assert_array_equal(loaded.damage, damage)
    assert (loaded.unit_ids, loaded.forward_macs, loaded.naive_macs) == (IDS, 3.0, 9.0)
    return tmp_path / "labels.npz"


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_named(file, kept):
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ArtifactError, match=r"labels\.npz"):
        LabelTable.load(file)


def test_a_flipped_byte_is_named_or_harmless(file):
    content, whole = file.read_bytes(), LabelTable.load(file)
    refused = 0
    for position in range(0, len(content), 3):
        file.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            found = LabelTable.load(file)
        except ArtifactError:
            refused += 1
        else:
            np.testing.assert_array_equal(found.damage, whole.damage)
    assert refused > len(content) / 12


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("macs", np.zeros(0)),
        ("macs", np.array(["many", "more"])),
        ("damage", np.array([["much"], ["more"]])),
        ("damage", np.zeros((3, 1))),
        ("choices", np.array("removed")),
        ("unit_ids", np.array(3)),
        ("source", np.array(["guessed", "measured"])),
    ],
)
def test_an_altered_column_is_named(file, name, value):
    save_arrays(file, **{**load_arrays(file, NAMES), name: value})
    with pytest.raises(ArtifactError, match=r"labels\.npz"):
        LabelTable.load(file)


def test_a_missing_column_and_another_table_are_named(file):
    arrays = load_arrays(file, NAMES)
    del arrays["source"]
    save_arrays(file, **arrays)
    with pytest.raises(ArtifactError, match=r"labels\.npz lacks \['source'\]"):
        LabelTable.load(file)
    with pytest.raises(ArtifactError, match=r"labels\.npz lacks"):
        FeatureTable.load(file)


@pytest.mark.parametrize(
    ("header", "place", "value"),
    [
        (b"PK\x03\x04", 6, 1),  # flags: encrypted
        (b"PK\x03\x04", 8, 99),  # method: a compression that zipfile does not know
    ],
)
def test_an_archive_that_zipfile_cannot_open_is_named(tmp_path, header, place, value):
    path = tmp_path / "a.npz"
    save_arrays(path, x=np.arange(3))
    content = bytearray(path.read_bytes())
    # In the header of the member and, two bytes further, in the directory.
    content[content.index(header) + place] = value
    content[content.index(b"PK\x01\x02") + place + 2] = value
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.npz"):
        load_arrays(path, ["x"])
