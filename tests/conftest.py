"""The order of the test files, and what is done once for all of them."""

import functools
import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def translations_are_listed_once():
    """torch lists all of its translations to ONNX anew for each export, which takes as long as a small net's export."""
    try:
        from torch.onnx._internal.exporter import _registration as translations
    except ImportError:  # where torch keeps them elsewhere, tests take longer
        yield
        return
    listed = functools.cache(translations.ONNXRegistry.from_torchlib)

    def from_torchlib(*arguments, **options):
        registry = translations.ONNXRegistry()
        vars(registry).update(vars(listed(*arguments, **options)))
        # An export adds its own to the lists.
        registry.functions = {target: list(found) for target, found in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translations.ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
        yield


def pytest_collection_modifyitems(items):
    """The longest file first: run in parallel, it would be left alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_end_to_end.py")


def pytest_collection_finish():
    """Modules live as long as the process does: walking them in every collection took a tenth of the time of tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)
