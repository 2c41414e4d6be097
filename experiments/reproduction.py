"""Repeating a run from its folder, and comparing what came out."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import ArtifactError, CompressError
from experiments.run_dir import STAGES, read_manifest

# Time differs from run to run; everything else must not.
TIME = re.compile(r"latency|seconds|speedup|throughput|time|_m?s(\.|$)")
CONDITIONS = ("threads", "device", "libraries", "machine", "code", "inputs")


@dataclass(frozen=True)
class Comparison:
    """What differs between a run and its repetition.

    Attributes:
        differences: results that are not equal: each makes the repetition a failure.
        conditions: code, versions, machine or inputs that were not the same, which may explain it.
        compared: numbers of plans and metrics looked at.
    """

    differences: tuple[str, ...]
    conditions: tuple[str, ...]
    compared: Mapping[str, int]


def repeat_run(run: str | Path, target: str | Path) -> None:
    """Do the run of folder `run` once more in `target`, in a fresh process, from the saved configuration alone.

    Raises:
        ArtifactError: if `run` is not the folder of a finished run, or `target` is not empty.
        CompressError: if the repetition fails.
    """
    run, target = Path(run).resolve(), Path(target).resolve()
    status = read_manifest(run)["status"]
    if status != "finished":
        raise ArtifactError(f"The run in {run} is {status}, not finished. Finish it with its own command first.")
    if not (run / ".hydra" / "config.yaml").is_file():
        raise ArtifactError(f"{run} has no .hydra/config.yaml, so it cannot be repeated.")
    if target.exists() and any(target.iterdir()):
        raise ArtifactError(f"{target} is not empty. Choose a new folder for the repetition.")
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "experiments.run", "-cp", str(run / ".hydra"), "-cn", "config"]
    done = subprocess.run(
        [*command, f"hydra.run.dir='{target}'"], env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, check=False
    )
    if done.returncode:
        raise CompressError(f"The repetition failed with exit status {done.returncode}; see {target}.")


def compare_runs(run: str | Path, other: str | Path) -> Comparison:
    """Every `plan.json` byte for byte, and every final metric that is not a time, exactly."""
    run, other = Path(run), Path(other)
    first, second = read_manifest(run), read_manifest(other)
    plans = {path.relative_to(root) for root in (run, other) for path in root.rglob("plan.json")}
    # A stage may be called "plan": its marker holds times and is no plan.
    plans = sorted(plan for plan in plans if plan.parts[0] != STAGES)
    differences = [f"{plan.as_posix()}: {problem}" for plan in plans if (problem := _compare_files(run, other, plan))]
    metrics, metrics_other = _leaves(first["metrics"]), _leaves(second["metrics"])
    names = [name for name in sorted({*metrics, *metrics_other}) if not TIME.search(name)]
    for name in names:
        a, b = metrics.get(name, "nothing"), metrics_other.get(name, "nothing")
        if a != b:
            differences.append(f"{name}: {a} before, {b} now")
    if not plans:
        differences.append("there is no plan.json in either folder")
    conditions = [f"{key}: {text}" for key in CONDITIONS if (text := _tell(first.get(key), second.get(key)))]
    return Comparison(tuple(differences), tuple(conditions), {"plans": len(plans), "metrics": len(names)})


def main() -> None:
    """Repeat a run from its folder into a new one; exit status 0 if plan and metrics are identical, 1 if not."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--into", type=Path, help="the new folder (default: RUN-repeated, numbered if it exists)")
    given = parser.parse_args()
    target = given.into or _new_folder(given.run)
    try:
        repeat_run(given.run, target)
        comparison = compare_runs(given.run, target)
    except CompressError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    lines = [f"not the same: {line}" for line in comparison.conditions]
    lines += [f"DIFFERENT {line}" for line in comparison.differences]
    compared = f"{comparison.compared['plans']} plan files and {comparison.compared['metrics']} metrics"
    lines.append(f"{compared}: {len(comparison.differences)} differences. The repetition lies in {target}")
    sys.stdout.write("\n".join(lines) + "\n")
    raise SystemExit(1 if comparison.differences else 0)


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Every single value in nested mappings and lists, under its dotted name."""
    if not isinstance(value, (Mapping, list)):
        return {name: value}
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {k: v for key, item in items for k, v in _leaves(item, f"{name}.{key}" if name else str(key)).items()}


def _compare_files(run: Path, other: Path, name: Path) -> str:
    missing = [root for root in (run, other) if not (root / name).exists()]
    if missing:
        return f"missing in {missing[0]}"
    return "" if (run / name).read_bytes() == (other / name).read_bytes() else "other content"


def _tell(before: Any, now: Any) -> str:
    """What differs between two records, in a few words."""
    if before == now:
        return ""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        return ", ".join(f"{key} {before.get(key)} -> {now.get(key)}" for key in keys)
    return f"{before} -> {now}"


def _new_folder(run: Path) -> Path:
    path, number = run.with_name(f"{run.resolve().name}-repeated"), 2
    while path.exists():
        path = run.with_name(f"{run.resolve().name}-repeated-{number}")
        number += 1
    return path


if __name__ == "__main__":
    main()
