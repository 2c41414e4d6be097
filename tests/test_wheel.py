"""The wheel: what someone without the checkout gets."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_the_packages_and_the_configuration(tmp_path):
    source = tmp_path / "source"  # setuptools leaves what it built beside the sources
    for name in ("compress", "autolabel", "experiments", "conf", "tests", "scripts"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("compress", "autolabel", "experiments"):
        sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}
        assert sources <= names, sorted(sources - names)
    settings = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert settings <= names, sorted(settings - names)
    shipped_files = (path for path in (ROOT / "autolabel" / "pretrained_plans").rglob("*") if path.is_file())
    pretrained = {path.relative_to(ROOT).as_posix() for path in shipped_files}
    assert pretrained <= names, sorted(pretrained - names)
    # A labeler of five megabytes at most ships, in text and safetensors.
    shipped = [info for info in zipfile.ZipFile(wheel).infolist() if info.filename in pretrained]
    assert 0 < sum(info.file_size for info in shipped) < 5_000_000
    assert {Path(info.filename).suffix for info in shipped} == {".json", ".txt", ".safetensors"}
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "results/"))]
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "autolabel = experiments.run:main" in zipfile.ZipFile(wheel).read(entry_points).decode()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    # It runs where there is no checkout.
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    command = [sys.executable, "-P", "-m", "experiments.run", "experiment=quickstart", "--cfg", "job", "--resolve"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "name: quickstart" in done.stdout
    where = [sys.executable, "-P", "-c", "import conf, experiments; print(experiments.__file__, conf.__file__)"]
    done = subprocess.run(where, capture_output=True, text=True, timeout=250, cwd=tmp_path, env=environment)
    assert done.stdout.count(str(tmp_path / "installed")) == 2
