"""What one file of a whole model holds; the table over a whole run is read in tests/test_end_to_end.py."""

import pytest

from experiments.coded_table import mean_entropy


def part(size, entropy):
    return {"raw_bytes": size, "entropy": entropy}


@pytest.mark.parametrize(("parts", "mean"), [
    ([part(300, 2.0), part(100, 4.0)], 2.5),
    ([part(300, 2.0), part(100, None)], None),
    ([part(300, 2.0), part(0, None)], 2.0),
    ([part(0, None)], None),
    ([], None),
])  # fmt: skip
def test_entropy_is_a_mean_over_weights_where_all_are_known(parts, mean):
    assert mean_entropy(parts) == mean
