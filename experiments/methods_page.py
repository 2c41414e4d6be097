"""The page of all methods: what each is, whose it is, how it is asked for, and what it did."""

from collections.abc import Sequence

from experiments.method_catalogue import BASE, SECTIONS, CataloguedMethod, catalogue
from experiments.method_trials import MethodRow

_ABOUT = """# Methods

Every way to make a network smaller, by the override that asks for it:
`python -m experiments.run experiment=quickstart OVERRIDE`. Where there are several, the first says what it is and the
others make room for it. Whatever is combined, the artifact ends as one entropy-coded file. Affine and codebook formats
go down to one bit, symmetric ones where a tensor or a group has one scale. Masks are ordered by weight
scores or the labeler; criteria of channels order what is removed. Written by `scripts/write_docs.py`.
"""
_MEASURED = """What they did was measured on scikit-learn's digits ({command}, AMD EPYC; other processors
choose another plan among near ties): one dense network of {dense:.2f} %, seed {seed}. Without any override the plan
comes to {metric:.2f} % in {macs:,.0f} MACs and {file_bytes:,} bytes. Where a row has as many MACs it began from that
plan; another budget, one bit, ranks, a criterion or a student has a plan of its own. *In float* is the accuracy before
weights are rounded and trained in their formats. It is one seed, and a point is four of the 400 test images:
differences of a point say nothing. Masks keep a quarter of the weights where nothing else is asked for, on top of the
plan and in as short a training; a method at its best needs settings of its own. Fisher and Taylor scores of single
weights end below random ones under the gradual schedule. L1, the group lasso and L0 are asked for with settings that
show in the 200 steps here (L0 also with another learning rate); scales of batch norms and weights drawn to their
formats leave no trace in these columns. A codebook has 256 values for each channel where it is not told otherwise,
which takes more bytes than so small a network has. The raw table is `results/methods/raw.csv`, what each file holds of
every layer `layers.csv` beside it.
"""
_OF_LENET5 = """The last columns are of LeNet-5 on MNIST ({command}, Intel Xeon): one dense network of {dense:.2f} %,
seed {seed}; {metric:.2f} % in {macs:,.0f} MACs and {file_bytes:,} bytes without any override. Masks keep a tenth of the
weights there where nothing else is asked for, and a tenth of a percent is ten of the 10,000 test images, about one
standard error. All scores of weights but random ones (six points behind) end within .3 of one another; schedules,
teachers, ranges and roundings within .2. Layers that keep a tenth each end a point behind a tenth of all weights, one
bit half a point to a point behind. The raw table is `results/methods_lenet5/raw.csv`, `layers.csv` beside it.
"""
_COLUMNS = ("in float, %", "in its formats, %", "MACs", "density", "bytes")
_LENET5_COLUMNS = ("LeNet-5 in float, %", "in its formats, %", "density", "bytes")


def write_page(
    rows: Sequence[MethodRow] = (), command: str = "", lenet5: Sequence[MethodRow] = (), lenet5_command: str = ""
) -> str:
    """Markdown: a table for each section; without rows, or without one of a method, nothing is said of what it did.

    Args:
        rows: of one job, that of no override among them.
        command: of the job.
        lenet5, lenet5_command: the same of LeNet-5.
    """
    known, others = ({row.method: row for row in some} for some in (rows, lenet5))
    parts, titles = [_ABOUT], ["override", "what", "paper"]
    for found, said, text, columns in (
        (known, command, _MEASURED, _COLUMNS), (others, lenet5_command, _OF_LENET5, _LENET5_COLUMNS)
    ):  # fmt: skip
        if BASE.name in found:
            parts.append(text.format(**{**vars(found[BASE.name]), "command": said}))
            titles += columns
    for section in SECTIONS:
        parts.append(f"## {section}\n")
        lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        lines += [_line(method, known, others) for method in catalogue() if method.section == section]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(method: CataloguedMethod, known: dict[str, MethodRow], lenet5: dict[str, MethodRow]) -> str:
    what = f"{method.what[:-1]} (the default)." if method.default else method.what
    cells = [f"`{method.name}`", what, "; ".join(method.papers) or "-"]
    for rows, columns in ((known, _COLUMNS), (lenet5, _LENET5_COLUMNS)):
        row = rows.get(method.name)
        if row is not None:
            macs = [f"{row.macs:,.0f}"] if "MACs" in columns else []
            cells += [f"{row.fine_tuned:.2f}", f"{row.metric:.2f}", *macs, f"{row.density:.2f}", f"{row.file_bytes:,}"]
        elif BASE.name in rows:
            cells += [""] * len(columns)
    return f"| {' | '.join(cells)} |"
