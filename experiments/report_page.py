"""The page of a report: one self-contained HTML file, light and dark."""

from collections.abc import Mapping
from typing import Any

from experiments.compared_methods import Method
from experiments.figure_style import COLOURS
from experiments.markup import cards, escape, section
from experiments.quantities import (
    STAGE_WORDS,
    format_bytes,
    format_count,
    format_metric,
    format_ms,
    format_percent,
    format_ratio,
    metric_unit,
    metric_words,
    ratio,
)
from experiments.report_comparison import render_comparison
from experiments.report_damage import render_damage
from experiments.report_labels import render_labeler, render_sensitivity
from experiments.report_sections import (
    render_files,
    render_left_out,
    render_removed,
    render_reproduction,
    render_stages,
    render_warnings,
)
from experiments.run_files import RunFiles, number, pick

_SECTIONS = (
    ("stages", "Metric after each stage", render_stages),
    ("comparison", "Methods at the same budget", render_comparison),
    ("removed", "What was removed, and bits of the rest", render_removed),
    ("files", "Files and latency", render_files),
    ("labeler", "Quality of the labeler", render_labeler),
    ("sensitivity", "Sensitivity", render_sensitivity),
    ("damage", "Predicted and realised damage", render_damage),
    ("warnings", "Warnings", render_warnings),
    ("left-out", "What could not be compressed or counted", render_left_out),
    ("reproduction", "How to reproduce", render_reproduction),
)


def render_page(run: RunFiles, report: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        run: the files.
        report: what `report.json` holds.
        figures: name -> `<svg>` element.
    """
    name = escape(report["name"])
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in _SECTIONS)
    body = "".join(section(anchor, title, render(run, report, figures)) for anchor, title, render in _SECTIONS)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: compression report</title>\n<style>{_style()}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{name}</h1>{_subtitle(report)}</header>\n{_verdict(report)}{_cards(report)}"
        f"<nav>{links}</nav>\n{body}</main>\n</body>\n</html>\n"
    )


def _subtitle(report: Mapping[str, Any]) -> str:
    told = [f"seed {report['seed']}" if report["seed"] is not None else ""]
    told += [f"commit {report['commit'][:10]}" if report["commit"] else ""]
    machine = report["machine"]
    told += [f"{machine.get('processor', '')}, {machine.get('cores', '?')} cores" if machine else ""]
    told += [f"torch {report['versions']['torch']}" if "torch" in report["versions"] else ""]
    return f"<p class=sub>{escape(' · '.join(text for text in told if text))}</p>"


def _verdict(report: Mapping[str, Any]) -> str:
    """The most important things in words, losses as plainly as gains."""
    lines = []
    if report["student"]:
        lines.append(
            f"What leaves is a student of another architecture, {report['student']}, trained from its own first "
            f"weights. The dense network was not cut: no units were removed, and no plans were compared."
        )
    if report["verdicts"]:
        lines.append(report["verdicts"][-1]["sentence"])
    if report["chosen"] and str(report["chosen"]).split("/")[0] != "labeler":
        kind = Method(str(report["chosen"])).kind
        maker = f"{kind} ({report['chosen']})" if kind != "a formula" else f"the formula {report['chosen']}"
        lines.append(f"The plan of this run was made by {maker}, not by labels of single units.")
        if str(report["chosen"]).startswith("criterion/") and report["criterion"]:
            lines.append(f"The criterion of this run is {report['criterion']}.")
        lines.append(f"Why: {report['reason']}." if report["reason"] else "")
    if not report["verdicts"] and not report["student"]:
        lines.append("Comparison with other methods at the same budget: not run.")
    return f"<div class=verdict>{''.join(f'<p>{escape(line)}</p>' for line in lines if line)}</div>\n"


def _cards(report: Mapping[str, Any]) -> str:
    dense, small = report["dense"] or {}, report["compressed"] or {}
    metric = pick(dense, "metric", "name")
    before, after = number(dense, "metric", "value"), number(small, "metric", "value")
    change = None if before is None or after is None else after - before
    stage = pick(small, "stage")
    return cards(
        _card(
            f"test {metric_words(metric)}",
            format_metric(before),
            format_metric(after),
            change is not None
            and f"{format_metric(change, signed=True)}{metric_unit(metric)}, {STAGE_WORDS.get(stage, stage)}",
        ),
        _card(
            "MACs of one example",
            format_count(number(dense, "macs")),
            format_count(number(small, "macs")),
            _fraction(small, dense, "macs"),
        ),
        _card(
            "smallest file that runs",
            format_bytes(number(dense, "file_bytes")),
            format_bytes(number(small, "file_bytes")),
            _smaller(small, dense),
        ),
        _latency_card(small, dense),
    )


def _card(title: str, before: str, after: str, note: str | bool | None) -> tuple[str, str, str, str]:
    return title, before, after, note or "not run"


def _fraction(small: Mapping[str, Any], dense: Mapping[str, Any], key: str) -> str | None:
    kept = ratio(number(small, key), number(dense, key))
    return None if kept is None else f"{format_percent(kept)} of dense"


def _smaller(small: Mapping[str, Any], dense: Mapping[str, Any]) -> str | None:
    times = ratio(number(dense, "file_bytes"), number(small, "file_bytes"))
    if times is None:
        return None
    name = str(small.get("file") or "").rsplit("/", 1)[-1]
    return f"{format_ratio(times)} smaller than the dense file ({name})"


def _latency_card(small: Mapping[str, Any], dense: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """The timing of the smallest file at the smallest batch and number of threads."""
    timings = [row for row in small.get("latency_ms") or () if row["path"] == small.get("file")]
    if not timings:
        return "latency", format_ms(None), format_ms(None), "not run"
    row = min(timings, key=lambda r: (r["batch"] or 0, r["threads"] or 0))
    same = [
        d
        for d in dense.get("latency_ms") or ()
        if d["beside"] == row["path"] and (d["batch"], d["threads"]) == (row["batch"], row["threads"])
    ]
    before = same[0]["median_ms"] if same else None
    times = ratio(before, row["median_ms"])
    words = (
        ""
        if times is None
        else f"{format_ratio(times)} as fast, "
        if times >= 1
        else f"{format_ratio(times)}: slower, "
    )
    threads = f"{row['threads']} thread{'' if row['threads'] == 1 else 's'}"
    return (
        f"latency, batch {row['batch']}, {threads}",
        format_ms(before).removesuffix(" ms"),
        format_ms(row["median_ms"]),
        f"{words}{row['runtime']}",
    )


def _style() -> str:
    light = "".join(f"--{name}:{colour};" for name, (colour, _) in COLOURS.items())
    dark = "".join(f"--{name}:{colour};" for name, (_, colour) in COLOURS.items())
    light += "--ground:#f3f5f7;--warn:#fff4d6;--warn-line:#e3b341;--good:#178a63;"
    dark += "--ground:#0f1318;--warn:#33290f;--warn-line:#8a6a1c;--good:#2fb185;"
    return (
        f":root{{color-scheme:light dark;{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}{_RULES}"
        f"@media print{{nav{{display:none}}section{{break-inside:avoid-page}}}}"
    )


_RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
  font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1020px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0}h2{font-size:18px;margin:0 0 10px}h3{font-size:14px;margin:22px 0 6px}
.sub{color:var(--muted);margin:2px 0 16px;font-size:13px}
.verdict{border-left:4px solid var(--s0);padding:2px 14px;margin:0 0 18px}.verdict p{margin:4px 0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(215px,1fr));gap:12px;margin:0 0 18px}
.card,section{background:var(--panel);border:1px solid var(--line);border-radius:10px}
.card{padding:12px 14px}.card h3{margin:0;color:var(--muted);font-weight:500;font-size:13px}
.card .big{font-size:21px;font-weight:650;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.card .from{color:var(--muted);font-weight:400;font-size:16px}
.card p{margin:2px 0 0;color:var(--muted);font-size:12.5px}
nav{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:13px;margin:0 0 18px}
a{color:var(--s0);text-decoration:none}a:hover{text-decoration:underline}
section{padding:18px 20px;margin:0 0 16px}
figure{margin:14px 0 4px}figure svg{max-width:100%;height:auto;display:block}
figcaption,.note{color:var(--muted);font-size:13px;margin:4px 0 8px;max-width:78ch}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums;margin:8px 0}
th,td{padding:4px 12px 4px 0;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--muted);font-weight:500;vertical-align:bottom}
th:first-child,td:first-child,td.text,th.text{text-align:left}td.wrap{white-space:normal;text-align:left;min-width:22ch}
tr.own td{font-weight:650}
.absent{color:var(--muted);font-style:italic}
.bar{display:inline-block;height:9px;border-radius:2px;background:var(--s0);vertical-align:middle;margin-right:6px}
.heat{padding-left:10px}.chosen{outline:2px solid var(--ink);outline-offset:-2px;border-radius:3px;font-weight:650}
.loss{color:var(--bad)}.gain{color:var(--good)}
.warnings{background:var(--warn);
  border:1px solid var(--warn-line);border-radius:8px;padding:8px 14px 8px 30px;margin:0}
pre{background:var(--ground);border:1px solid var(--line);
  border-radius:6px;padding:10px 12px;overflow-x:auto;font-size:12.5px}
details{margin:8px 0}summary{cursor:pointer;color:var(--s0);font-size:13.5px}
"""
