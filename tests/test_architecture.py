"""The shape of the house: who may import whom and what, and how files are named and sized."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("compress", "autolabel", "experiments")
# Each package may import those before it.
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
# Library -> where it may be imported (prefixes of module names). The owner of a library is the one place to look when
# it changes, and what needs none of it can be used without it.
CONFINED = {
    "lightgbm": ("autolabel.unit_labelers.", "autolabel.labelers.", "autolabel.plan_labelers.", "autolabel.evaluation"),
    "sklearn": ("autolabel.labelers.", "autolabel.evaluation", "autolabel.pair_terms", "experiments.data."),
    "hydra": ("experiments.",),
    "omegaconf": ("experiments.",),
    "wandb": ("experiments.trackers.wandb",),
    "transformers": ("experiments.models.", "experiments.data."),
    "tokenizers": ("experiments.models.", "experiments.data."),
    "torch_pruning": (),
    "torchvision": (),
    "timm": (),
    "pickle": ("experiments.models.",),  # the name of an error only
    "joblib": (),
}
IMPLEMENTATION_FOLDERS = {
    "compress.criteria", "compress.allocators", "compress.quantizers", "compress.exporters", "compress.runtimes",
    "compress.factorizers", "compress.patterns", "compress.weight_scores", "compress.sparsity_schedules",
    "compress.distillations", "compress.penalties", "autolabel.features", "autolabel.oracles", "autolabel.labelers",
    "autolabel.plan_labelers", "experiments.jobs", "experiments.models", "experiments.trackers",
    "compress.roundings", "compress.weight_formats",
}  # fmt: skip
MAX_LINES = 400
MAX_SCRIPT_LINES = 120
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "base", "manager", "common", "misc"}


@cache
def imports(module: str) -> frozenset[str]:
    """Full names of the modules and objects that a module imports anywhere in it, but for type checking only."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; write the full name"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def own_imports(module: str) -> set[str]:
    """The modules of this project that a module imports."""
    return {name for name in imports(module) if name in MODULES and name != module}


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_one_way(package):
    later = PACKAGES[PACKAGES.index(package) + 1 :]
    wrong = {
        (module, name)
        for module in MODULES
        if module.split(".")[0] == package
        for name in imports(module)
        if name.split(".")[0] in (*later, "conf", "scripts", "tests")
    }
    assert not wrong


def test_there_are_no_cycles():
    # Importing `a.b` runs `a/__init__.py` too, which is no arrow of the design; an explicit `import a` inside `a` is.
    done: set[str] = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        for name in sorted(own_imports(module)):
            # `from compress.plan import X` names compress.plan; a package in between is named only by itself.
            visit(name, [*path, module])
        done.add(module)

    for module in MODULES:
        visit(module, [])


@pytest.mark.parametrize("library", CONFINED)
def test_libraries_stay_where_they_belong(library):
    wrong = [
        module
        for module in MODULES
        if any(name.split(".")[0] == library for name in imports(module))
        and not any((module + ".").startswith(place) for place in CONFINED[library])
    ]
    assert not wrong


def test_an_implementation_never_imports_a_sibling():
    wrong = {
        (module, name)
        for module in MODULES
        if (folder := module.rpartition(".")[0]) in IMPLEMENTATION_FOLDERS
        for name in own_imports(module)
        if name.rpartition(".")[0] == folder
    }
    assert not wrong


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short_and_well_named(module):
    lines = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{module} has {lines} lines"
    assert not FORBIDDEN_NAMES & set(module.split("."))
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body, f"{module} does not say what it is"


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_packages_only_re_export(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert all(isinstance(node, (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign)) for node in tree.body)
    names = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if f"{node.module}.{alias.name}" not in MODULES  # the file itself under its own name is no clash
    }
    # A target `package.name` would find the file instead of what the package re-exports under its name.
    assert not {name for name in names if f"{module}.{name}" in MODULES}


def test_scripts_hold_no_logic():
    for path in sorted((ROOT / "scripts").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [node for node in tree.body if isinstance(node, ast.ClassDef)], path.name
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_SCRIPT_LINES, path.name
