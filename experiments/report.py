"""The report of a run: `report.json` for programs, `report.html` for people, from the files in the run folder."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.files import write_atomic, write_json
from experiments.compared_methods import ALLOCATORS
from experiments.compared_methods import Method as MethodName
from experiments.figures import write_figures
from experiments.figures_labeler import ranked_scores
from experiments.figures_units import realised_damages
from experiments.methods import Method, compared_stages, gather_methods, judge
from experiments.quantities import STAGES, metric_unit
from experiments.report_page import render_page
from experiments.run_files import REPORT_HTML, REPORT_JSON, RunFiles, number, pick, read_run

SCHEMA_VERSION = 1


def write_report(folder: str | Path) -> dict[str, Any]:
    """Write `report.json`, `report.html` and `figures/` into a run folder and return what `report.json` holds.

    A stage that left no file is told as not run (None in `report.json`).

    Raises:
        ArtifactError: if a file of the run is damaged, or the folder cannot be written.
    """
    run = read_run(folder)
    report = summarize(run)
    write_json(run.folder / REPORT_JSON, report)
    page = render_page(run, report, write_figures(run))
    write_atomic(run.folder / REPORT_HTML, lambda file: file.write(page.encode()))
    return report


def summarize(run: RunFiles) -> dict[str, Any]:
    """What `report.json` holds, plain JSON without NaN."""
    metric = pick(run.dense, "metric_name")
    higher = pick(run.dense, "higher_is_better") is not False
    methods = gather_methods(run.comparison or (), higher)
    verdicts = [judge(methods, stage, higher, metric_unit(metric)) for stage in compared_stages(methods)]
    realised = realised_damages(run)
    report = {
        "schema_version": SCHEMA_VERSION,
        "name": pick(run.manifest, "name") or run.folder.name,
        "seed": pick(run.manifest, "seeds", "seed"),
        "command": pick(run.manifest, "command"),
        "commit": pick(run.manifest, "code", "commit"),
        "versions": pick(run.manifest, "libraries") or {},
        "machine": pick(run.manifest, "machine") or {},
        "dense": _dense(run, metric, higher),
        "compressed": _compressed(run, metric, higher),
        "stages": {
            stage: pick(_stages(run), stage, "metric") for stage in STAGES if stage != "tried" or stage in _stages(run)
        },
        "labeler": _labeler(run),
        "predicted_damage": number(run.result, "predicted_damage"),
        "predicted_recovered_damage": run.plan_damage,
        "solve": _solve(run),
        "realised_damage": realised.get("pruned"),
        "realised_damage_by_stage": realised,
        "baselines": [_method(method) for method in methods],
        "verdicts": [vars(verdict) for verdict in verdicts if verdict is not None],
        "student": pick(run.plan.provenance, "student") if run.plan is not None else None,
        "criterion": _criterion(run),
        "chosen": pick(run.choice, "chosen"),
        "reason": pick(run.choice, "reason"),
        "budget": {
            "asked": pick(run.result, "budget", "asked") or {},
            "met": _met(run),
            "stopped_by": pick(run.result, "budget", "stopped_by"),
        },
        "warnings": list(run.warnings or ()),
    }
    return _without_nan(report)


def smallest_file(run: RunFiles) -> Mapping[str, Any] | None:
    """The entry of the smallest file of the final model that was found good, None without one.

    A quantised run also leaves the float32 file of the model before its formats: that is another model, whose accuracy
    must not stand beside the low-bit bytes.
    """
    entries = pick(run.export, "files") or ()
    final = "int8" if any(pick(entry, "format") == "int8" for entry in entries) else "fp32"
    good = [entry for entry in entries if pick(entry, "ok") is True and pick(entry, "format") in (final, None)]
    sized = [entry for entry in good if number(entry, "file_bytes") is not None]
    return min(sized, key=lambda entry: entry["file_bytes"], default=None)


def _criterion(run: RunFiles) -> str | None:
    """The configured criterion, which methods call `criterion`: its name, and its settings where it has any."""
    node = pick(run.manifest, "config", "criterion")
    if not isinstance(node, Mapping) or "_target_" not in node:
        return None
    settings = ", ".join(f"{key}={value}" for key, value in node.items() if key != "_target_" and value is not None)
    name = str(node["_target_"]).split(".")[-2]
    return f"{name} ({settings})" if settings else name


def _stages(run: RunFiles) -> dict[str, Any]:
    """Stage -> `{"metric", "loss"}` on the test set; `exported` is the smallest file that runs."""
    stages = dict(pick(run.result, "stages") or {})
    smallest = smallest_file(run)
    if smallest is not None:
        stages["exported"] = {"metric": number(smallest, "metric"), "loss": number(smallest, "loss")}
    return stages


def _met(run: RunFiles) -> dict[str, Any]:
    """What came out of each cost; of coded bytes the size of the whole file."""
    met = dict(pick(run.result, "budget", "met") or {})
    coded = number(run.packed, "file_bytes")
    return met if coded is None else {**met, "coded_bytes": coded}


def _solve(run: RunFiles) -> dict[str, Any] | None:
    """What one solve proves of the plan, and how it counted; None for a plan that did not come from one.

    `damage` is the sum that was made least, which no plan within the budget has less of than `lower_bound`; `gap` is
    the part of it above the bound. `counted` says how damages went into the sum, None where it is the predicted damage.
    """
    told = run.plan.provenance if run.plan is not None else {}
    method = MethodName(str(told.get("method") or pick(run.choice, "chosen") or ""))
    # A search finds what to remove by other means, and solves for formats around it.
    if told.get("allocator") != ALLOCATORS["knapsack"] or "gap" not in told or method.searches:
        return None
    gap, least = number(told, "gap"), number(told, "lower_bound")
    damage = number(told, "solved_damage")
    if damage is None and gap is not None and least is not None and gap < 1:  # of plans from before it was told
        damage = least / (1 - gap)
    counted = ["choices that seem to help as 0"]
    if method.healing != 1:
        counted.append(f"damages of formats times {method.healing:g}")
    if run.joint is not None:
        counted.append("widths at their prices in company")
    predicted = run.plan.predicted_damage if run.plan is not None else None
    same = None not in (damage, predicted) and math.isclose(damage, predicted, rel_tol=1e-6)
    if predicted is None:
        counted.append("scores that only order as if they were damages")
    return {"damage": damage, "lower_bound": least, "gap": gap, "timed_out": told.get("timed_out") is True,
            "counted": None if same else ", ".join(counted)}  # fmt: skip


def _dense(run: RunFiles, metric: str | None, higher: bool) -> dict[str, Any] | None:
    if run.dense is None:
        return None
    return {
        "metric": {"name": metric, "value": number(run.dense, "test", "metric"), "higher_is_better": higher},
        "loss": number(run.dense, "test", "loss"),
        **{key: number(run.dense, key) for key in ("macs", "params", "weight_bytes")},
        "file_bytes": number(run.export, "dense_file", "file_bytes") or number(run.dense, "file_bytes"),
        "latency_ms": _latencies(run, "dense_median_ms", dense=True),
    }


def _compressed(run: RunFiles, metric: str | None, higher: bool) -> dict[str, Any] | None:
    stages = _stages(run)
    done = [stage for stage in STAGES if number(stages, stage, "metric") is not None]
    if run.result is None and not done:
        return None
    last = done[-1] if done else None
    return {
        "metric": {"name": metric, "value": number(stages, last or "", "metric"), "higher_is_better": higher},
        "stage": last,
        "loss": number(stages, last or "", "loss"),
        **{key: number(run.result, key) for key in ("macs", "params", "weight_bytes")},
        "file": pick(smallest_file(run), "path"),
        "file_bytes": number(smallest_file(run), "file_bytes"),
        "latency_ms": _latencies(run, "median_ms", dense=False),
    }


def _latencies(run: RunFiles, key: str, dense: bool) -> list[dict[str, Any]]:
    """One entry for each timing; the dense file was timed anew beside every compressed one, in turns with it."""
    entries = []
    own = pick(run.export, "dense_file", "path")
    for row in pick(run.export, "latency") or ():
        if number(row, key) is not None and (own is None or pick(row, "path") != own):
            where = (
                {"path": pick(run.export, "dense_file", "path"), "beside": pick(row, "path")}
                if dense
                else {"path": pick(row, "path")}
            )
            conditions = {name: pick(row, name) for name in ("runtime", "cpu", "batch", "threads")}
            entries.append({**where, **conditions, "median_ms": number(row, key)})
    return entries


def _labeler(run: RunFiles) -> dict[str, Any] | None:
    if run.labeler is None:
        return None
    scores = ranked_scores(run)
    formulas = [score for score in scores if score.get("kind") != "labeler"]
    learned = [score for score in scores if score.get("kind") == "labeler"]
    ahead = learned[0]["spearman"] - formulas[0]["spearman"] if learned and formulas else None
    return {
        **{
            key: pick(run.labeler, key)
            for key in (
                "labeler",
                "n_measured",
                "n_units",
                "seconds",
                "forward_macs",
                "naive_macs",
                "coverage",
                "top_features",
            )
        },
        "held_out": scores,
        "held_out_spearman": learned[0]["spearman"] if learned else None,
        "best_formula": {"name": formulas[0].get("name"), "spearman": formulas[0]["spearman"]} if formulas else None,
        "ahead_of_best_formula": ahead,
    }


def _method(method: Method) -> dict[str, Any]:
    stages = {
        stage: {
            "mean": s.mean,
            "std": s.std,
            "n": len(s.values),
            "values": dict(zip(s.seeds, s.values, strict=True)),
            "failed_seeds": list(s.failed),
        }
        for stage, s in method.stages.items()
    }
    return {
        "method": method.name,
        "kind": "labeler" if method.learned else "baseline",
        "macs": method.macs,
        "weight_bytes": method.weight_bytes,
        "stages": stages,
    }


def _without_nan(value: Any) -> Any:
    """`value` with None for numbers that are not finite, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
