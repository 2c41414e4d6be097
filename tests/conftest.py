"""The order of the test files."""


def pytest_collection_modifyitems(items):
    """The longest file first: run in parallel, it would be left alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_end_to_end.py")
