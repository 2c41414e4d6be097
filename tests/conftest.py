"""The order of the test files, and what is done once for all of them."""

import functools
import gc
import hashlib
import io
import pickle

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


@pytest.fixture(scope="session", autouse=True)
def configurations_are_composed_once():
    """Hydra composes a run's configuration once more, only to see whether it sets the mode (none does), builds all
    choices anew for each group, for interpolations in defaults lists, and parses each of dozens of files every time:
    two thirds of the time, hundreds of times."""
    try:
        from hydra._internal import defaults_list
        from hydra._internal.hydra import Hydra
        from hydra._internal.sources_registry import SourcesRegistry
        from hydra.core.plugins import Plugins

        Plugins.instance()
        # Not the class that an import finds: plugins are loaded once more, beside the modules that are imported.
        source = SourcesRegistry.instance().resolve("pkg")
        build, parse = defaults_list._create_interpolation_map, source._read_config
    except (ImportError, AttributeError, ValueError):  # where Hydra does so otherwise, tests take longer
        yield
        return

    def build_if_read(overrides, found, self_added):
        read = any(default.is_interpolation() for default in found)
        return build(overrides, found, self_added) if read else None

    parsed = {}

    def read_config(self, file):
        key = self.provider, self.path, file.name, file.read_bytes()
        if key not in parsed:
            parsed[key] = pickle.dumps(parse(self, file))
        return pickle.loads(parsed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_read_config", read_config)
        patch.setattr(defaults_list, "_create_interpolation_map", build_if_read)
        patch.setattr(Hydra, "get_mode", lambda self, config_name, overrides: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def networks_are_captured_once():
    """Most of a small network's time goes into torch.export, and dozens of tests begin with the same one."""
    import torch  # not at the top: pytest's own process, which deals files to others, would import it too
    from torch import fx

    from compress import graph
    from compress.attributes import copy_traced

    class Contents(pickle.Pickler):
        """Writes what a model is, alike for equal models: of parameters and buffers, which the graph reads from the
        model, all but their values. What has no qualified name, such as a local class or a hook that is a closure, is
        refused."""

        def __init__(self, file, model):
            super().__init__(file)
            self.known, self.read = {}, {id(own) for own in (*model.parameters(), *model.buffers())}

        def persistent_id(self, value):
            if not isinstance(value, torch.Tensor):
                return None
            number = self.known.setdefault(id(value), len(self.known))
            values = None if id(value) in self.read else value.tolist()
            return (number, type(value), value.dtype, value.shape, value.stride(), str(value.device),
                    value.requires_grad, values)  # fmt: skip

        def reducer_override(self, value):
            if isinstance(value, torch.nn.Module) and "forward" in vars(value):
                raise pickle.PicklingError("Its forward is not that of its class.")
            if not isinstance(value, fx.GraphModule):
                return NotImplemented
            # To pickle it is to compile it, which whoever changed its graph may have forgotten.
            held = vars(value)
            parts = [held[name] for name in ("training", "_parameters", "_buffers", "_modules")]
            return list, ([value.code, *parts, {n: own for n, own in held.items() if isinstance(own, torch.Tensor)}],)

    capture, kept = graph.capture, {}

    def capture_once(model, args, kwargs):
        contents = io.BytesIO()
        try:
            Contents(contents, model).dump((model, args, kwargs, torch.get_default_dtype(), torch.is_grad_enabled()))
        except (pickle.PicklingError, AttributeError, RuntimeError, TypeError):
            return capture(model, args, kwargs)
        key = hashlib.sha256(contents.getvalue()).digest()
        if key not in kept:
            found = capture(model, args, kwargs)
            again = copy_traced(found[0])
            if again.state_dict().keys() != found[0].state_dict().keys():
                return found  # constants become buffers where a graph is copied
            kept[key] = (again, *found[1:])
        module, *inputs, limits = kept[key]
        return copy_traced(module), *inputs, list(limits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "capture", capture_once)
        yield


def pytest_collection_modifyitems(items):
    """The longest file first: run in parallel, it would be left alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_end_to_end.py")


def pytest_collection_finish():
    """Modules live as long as the process does: walking them in every collection took a tenth of the time of tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 10, 20)
