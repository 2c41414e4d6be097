"""Sections of the report on what was done and what came out."""

from collections.abc import Mapping
from typing import Any

from experiments.figures_units import group_counts, layer_bits
from experiments.markup import Cell, code, figure, folded, heading, items, not_run, note, paragraph, table
from experiments.quantities import (
    NOTHING,
    STAGE_WORDS,
    STAGES,
    file_name,
    format_bytes,
    format_count,
    format_loss,
    format_metric,
    format_ms,
    format_percent,
    format_ratio,
    metric_unit,
    metric_words,
    ratio,
)
from experiments.run_files import RunFiles, number, pick

Report = Mapping[str, Any]
Figures = Mapping[str, str]


def render_stages(run: RunFiles, report: Report, figures: Figures) -> str:
    """Metric and loss of this run's plan after each stage, the dense model first."""
    if report["dense"] is None:
        return not_run("Evaluation of the dense model", "no dense.json")
    metric, value = report["dense"]["metric"]["name"], report["dense"]["metric"]["value"]
    higher = report["dense"]["metric"]["higher_is_better"]
    losses = pick(run.result, "stages") or {}
    rows: list[list[Cell]] = [["dense", format_metric(value), "", format_loss(report["dense"]["loss"])]]
    for stage in STAGES:
        if stage not in report["stages"]:  # a short trial, in runs that made none
            continue
        now = report["stages"][stage]
        if now is None:
            rows.append([STAGE_WORDS[stage], ("not run", "class=absent"), "", ""])
            continue
        loss = report["compressed"]["loss"] if stage == "exported" else number(losses, stage, "loss")
        change = now - value if value is not None else None
        better = change is not None and (change >= 0) == higher
        cell = f"{format_metric(change, signed=True)}{metric_unit(metric)}" if change is not None else NOTHING
        rows.append(
            [
                STAGE_WORDS[stage],
                format_metric(now),
                (cell, f"class={'gain' if better else 'loss'}"),
                format_loss(loss),
            ]
        )
    parts = [table(["stage", f"test {metric_words(metric)}", "against dense", "loss per example"], rows)]
    parts.append(
        note(f"{_direction(higher)} One run, seed {report['seed']}; spread over seeds stands in the comparison.")
    )
    parts.append(_budget(run, report))
    parts.append(figure(figures, "training", "Losses during training after the cut."))
    return "".join(parts)


def render_removed(run: RunFiles, report: Report, figures: Figures) -> str:
    """Kept and removed units per group, bits per layer."""
    if run.plan is None or run.units is None:
        return not_run("Plan", "no plan.json" if run.plan is None else "no units.npz")
    groups, layers = group_counts(run), layer_bits(run)
    total, gone = sum(n for _, n, _ in groups), sum(removed for _, _, removed in groups)
    widths = sorted({bits for _, bits in layers if bits < 32})
    float_layers = sum(bits == 32 for _, bits in layers)
    told = f"{gone:,} of {total:,} channels and heads are removed ({format_percent(ratio(gone, total))}). "
    if report["student"]:
        told = f"Of the student, {report['student']}, no units were removed; the dense network was not cut. "
    which = f"{len(layers) - float_layers} of {len(layers)}" if float_layers else f"All {len(layers)}"
    rest = f", {float_layers} in float32." if float_layers else "."
    told += f"{which} layers are stored in {_list(widths)} bits{rest}" if widths else "All layers stay in float32."
    divided = sum(layer_format.rank is not None for layer_format in run.plan.layer_formats.values())
    told += f" {divided} became two layers of low rank." if divided else ""
    costs = {layer.get("name"): layer for layer in pick(run.costs, "layers") or ()}
    layer_rows = [
        [
            name,
            "float32" if bits == 32 else str(bits),
            format_count(number(costs, name, "macs")),
            format_count(number(costs, name, "weights")),
        ]
        for name, bits in layers
    ]
    group_rows = [[name, str(n), str(removed), format_percent(removed / n)] for name, n, removed in groups]
    activations = f"{run.plan.activation_bits} bits of {run.plan.activation_ranges} ranges"
    if run.plan.activation_bits is None:
        asked = widths and pick(run.manifest, "config", "quantize", "activation_bits") is not None
        activations = "float"
        activations += ", as always beside layers that do not compute on integers" if asked else ""
    return "".join(
        [
            paragraph(told),
            figure(figures, "removed", "Channels and heads of each coupled group, in the order of the network."),
            folded("the same as a table", table(["group", "units", "removed", "sparsity"], group_rows)),
            heading("Bits per weight"),
            figure(figures, "bits", "Bits per weight of each layer, in the order of the network."),
            paragraph(f"Activations between quantised layers: {activations}."),
            folded(
                "the same as a table, with MACs and weights of whole layers",
                table(["layer", "bits", "MACs", "weights"], layer_rows),
            ),
        ]
    )


def render_files(run: RunFiles, report: Report, figures: Figures) -> str:
    """Bytes of each file and how it was checked; latency with everything that it depends on."""
    if run.export is None:
        return not_run("Export", "no export.json")
    dense = pick(report, "dense", "file_bytes")
    rows: list[list[Cell]] = [
        [
            file_name(pick(run.export, "dense_file", "path")),
            "fp32",
            format_bytes(dense),
            "1x",
            format_metric(pick(report, "dense", "metric", "value")),
            NOTHING,
            NOTHING,
            ("the dense model", "class=text"),
        ]
    ]
    for entry in pick(run.export, "files") or ():
        ok = pick(entry, "ok") is True
        tolerance = number(entry, "tolerance")
        word = "good" if ok else "NOT good: do not use" if pick(entry, "ok") is False else "not checked"
        rows.append(
            [
                file_name(pick(entry, "path")),
                str(pick(entry, "format") or NOTHING),
                format_bytes(number(entry, "file_bytes")),
                format_ratio(ratio(dense, number(entry, "file_bytes"))),
                format_metric(number(entry, "metric")),
                _small_percent(number(entry, "discrepancy_relative")),
                format_percent(number(entry, "argmax_agreement")),
                (f"{word} (tolerance {_small_percent(tolerance)})", f'class="wrap {"gain" if ok else "loss"}"'),
            ]
        )
    header = [
        "file",
        "format",
        "size",
        "dense / this",
        metric_words(pick(report, "dense", "metric", "name")),
        "off from simulation",
        "same answer",
        ("check", "class=text"),
    ]
    return "".join(
        [
            table(header, rows),
            note(
                "Metric: the file itself, run on the test set by the runtime. Off from simulation: root mean square, "
                "relative to the outputs. A file is called good only within its tolerance."
            ),
            figure(figures, "sizes", "Bytes of each self-contained file that was found good."),
            heading("Coded weights"),
            _packed(run, dense),
            heading("Latency"),
            _latency(run),
        ]
    )


def _packed(run: RunFiles, dense: float | None) -> str:
    """The file of coded weights: in all, and what each quantised tensor takes beside its entropy."""
    packed = run.packed
    if packed is None:
        return not_run("Coded weights", "no packed.json")
    tensors = packed["tensors"]
    plain, coded = (sum(tensor[key] for tensor in tensors) for key in ("packed_bytes", "coded_bytes"))
    raw = 4 * sum(tensor["values"] for tensor in tensors)
    size = packed["file_bytes"]
    words = paragraph(
        f"weights.packed holds the whole compressed model in {format_bytes(size)} "
        f"({format_ratio(ratio(dense, size))} smaller than the dense file): its weights take {format_bytes(raw)} as "
        f"float32, {format_bytes(plain)} at their bits, {format_bytes(coded)} as coded ({packed['coder']}); the rest "
        "tells the plan. load_artifact decodes it to the same outputs; an engine needs the ONNX file. Entropy: of how "
        "often each integer occurs; a coder that sees context can go below it."
    )
    rows = [
        [tensor["name"], format_count(tensor["values"]), str(tensor["bits"]),
         f"{8 * tensor['coded_bytes'] / max(tensor['values'], 1):.2f}", f"{tensor['entropy']:.2f}",
         format_bytes(tensor["coded_bytes"])]
        for tensor in tensors if tensor["entropy"] is not None
    ]  # fmt: skip
    if not rows:
        return words
    words += _narrow_integers(run)
    return words + table(["tensor", "weights", "bits", "coded, bits per weight", "entropy", "bytes"], rows)


def _narrow_integers(run: RunFiles) -> str:
    """Why tensors take fewer bits here than in the plan, where any does."""
    planned = run.plan.layer_formats if run.plan is not None else {}
    bits = {tensor["name"].removesuffix(".weight"): tensor["bits"] for tensor in run.packed["tensors"]}
    narrow = [name for name, layer_format in planned.items() if bits.get(name, 8) < layer_format.bits == 8]
    if not narrow:
        return ""
    return note(
        f"{', '.join(narrow[:3])}{' and others' if len(narrow) > 3 else ''}: 8 bits in the plan, 7 here, because 8-bit "
        "weights use the integers from -63 to 63 only, with which all processors compute exactly."
    )


def render_warnings(run: RunFiles, report: Report, figures: Figures) -> str:
    """Everything that was skipped or had no effect."""
    if run.warnings is None:
        return not_run("Collecting of warnings", "no warnings.json")
    return items(run.warnings, "warnings") if run.warnings else paragraph("None.")


def render_left_out(run: RunFiles, report: Report, figures: Figures) -> str:
    """Blocked units with their reasons, operations that were not counted."""
    if run.units is None:
        blocked = not_run("Search for units", "no units.npz")
    elif run.units.blocked:
        rows: list[list[Cell]] = [[name, (reason, "class=wrap")] for name, reason in run.units.blocked]
        listing = table(["place", ("why", "class=text")], rows)
        blocked = listing if len(rows) <= 12 else folded(f"{len(rows)} places", listing)
    else:
        blocked = paragraph("Nothing was blocked.")
    uncounted = pick(run.costs, "uncounted")
    if uncounted is None:
        counted = not_run("Counting of costs", "no costs.json")
    elif uncounted:
        counted = paragraph(
            "Not counted in MACs: " + ", ".join(f"{name} ({times}x)" for name, times in uncounted) + "."
        )
    else:
        counted = paragraph("All operations were counted.")
    return heading("Blocked") + blocked + heading("Costs") + counted


def render_reproduction(run: RunFiles, report: Report, figures: Figures) -> str:
    """Command, versions and configuration."""
    machine = report["machine"]
    told = [f"{name} {version}" for name, version in sorted(report["versions"].items())]
    changed = " (with uncommitted changes)" if pick(run.manifest, "code", "modified") else ""
    facts = [
        ["commit", f"{report['commit'] or 'unknown'}{changed}"],
        ["seed", str(report["seed"])],
        ["threads", str(pick(run.manifest, "threads") or "unknown")],
        ["device", str(pick(run.manifest, "device") or "unknown")],
        ["machine", ", ".join(f"{k} {v}" for k, v in machine.items()) or "unknown"],
        ["libraries", ", ".join(told) or "unknown"],
    ]
    rows: list[list[Cell]] = [[name, (text, "class=wrap")] for name, text in facts]
    config = (
        folded("resolved configuration", code(run.config))
        if run.config
        else not_run("Configuration", "no .hydra/config.yaml")
    )
    return "".join(
        [
            code(report["command"]) if report["command"] else not_run("Command", "no manifest.json"),
            paragraph("From the run folder, with plan and metrics compared:"),
            code("python -m experiments.reproduction RUN"),
            table(["", ""], rows),
            config,
        ]
    )


def _budget(run: RunFiles, report: Report) -> str:
    """Bounds that were asked for beside what came out, and what stopped the allocator."""
    asked, met = report["budget"]["asked"], report["budget"]["met"]
    if not asked:
        return heading("Budget") + not_run("Allocation to a budget", "no bound in result.json")
    rows = []
    for name, bound in asked.items():
        kept = ratio(number(met, name), number(report["dense"], "weight_bytes" if name == "coded_bytes" else name))
        rows.append([name, _bound(bound), _bound(number(met, name)), format_percent(kept)])
    stopped = pick(run.result, "budget", "stopped_by")
    told = note(f"What stopped the allocator: {stopped}.") if stopped else ""
    return heading("Budget") + table(["bound", "asked", "came out", "of dense"], rows) + told


def _latency(run: RunFiles) -> str:
    dense = pick(run.export, "dense_file", "path")
    timings = [entry for entry in pick(run.export, "latency") or () if dense is None or pick(entry, "path") != dense]
    if not timings:
        return not_run("Latency", "no timings in export.json")
    rows: list[list[Cell]] = []
    for entry in timings:
        before, after = number(entry, "dense_median_ms"), number(entry, "median_ms")
        times = ratio(before, after)
        word = "" if times is None else "gain" if times >= 1 else "loss"
        slower = " (slower)" if times is not None and times < 1 else ""
        rows.append(
            [
                file_name(pick(entry, "path")),
                str(pick(entry, "batch") or NOTHING),
                str(pick(entry, "threads") or NOTHING),
                format_ms(before),
                format_ms(after),
                (format_ratio(times) + slower, f"class={word}" if word else ""),
                (str(pick(entry, "runtime") or NOTHING), "class=text"),
                (str(pick(entry, "cpu") or NOTHING), "class=text"),
            ]
        )
    header = [
        "file",
        "batch",
        "threads",
        "dense",
        "this file",
        "speed-up",
        ("runtime", "class=text"),
        ("CPU", "class=text"),
    ]
    return table(header, rows) + note("Median wall time of one run; dense and compressed file take turns.")


def _direction(higher: bool) -> str:
    return "Higher is better." if higher else "Lower is better."


def _bound(value: Any) -> str:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return NOTHING if value is None else str(value)
    return f"{value:.4g} of dense" if value <= 1 else f"{value:,.0f}"


def _small_percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.2g} %"


def _list(widths: list[int]) -> str:
    return ", ".join(map(str, widths)) or "fewer"
