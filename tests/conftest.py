"""The order of the test files, and a garbage collector that leaves alone what was imported."""

import gc


def pytest_collection_modifyitems(items):
    """The longest file first: run in parallel, it would be left alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_end_to_end.py")


def pytest_collection_finish():
    """Modules live as long as the process does: walking them in every collection took a tenth of the time of tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)
