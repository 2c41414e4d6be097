"""Plans that remove units and store layers in few bits: their size, what is known of them, and what they do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from autolabel.choice_bench import ChoiceBench
from autolabel.format_sampling import bits_by_row, sample_formatted_plans
from autolabel.format_summary import FormatSummarizer
from autolabel.plan_criteria import plan_criteria
from autolabel.plan_formula import PlanFormula
from autolabel.plan_oracle import PlanBench, PlanOracle
from autolabel.plan_search import PlanSearch
from autolabel.plan_summary import PlanSummarizer
from compress.allocator import Constraints
from compress.counting import unit_costs
from compress.errors import BudgetError, CompressError
from compress.layer_choice import LayerChoice
from compress.output_sensitivity import collect_output_sensitivity
from compress.quantizers.mse import MseQuantizer
from compress.statistics import collect_statistics
from compress.structure import analyze
from compress.task import ClassificationTask

WIDTHS = (2, 4, 8)


@pytest.fixture(scope="module")
def known():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 40), nn.ReLU(),
                          nn.Linear(40, 3)).eval()  # fmt: skip
    batches = [(torch.randn(16, 1, 8, 8), torch.randint(0, 3, (16,))) for _ in range(3)]
    task = ClassificationTask()
    structure = analyze(model, (batches[0][0][:2],))
    costs = unit_costs(structure)
    statistics = collect_statistics(structure, task, batches)
    sensitivity = collect_output_sensitivity(structure, task, batches)
    summarizer = PlanSummarizer(statistics, sensitivity, costs, plan_criteria())
    bench = ChoiceBench(structure, task, MseQuantizer(), [LayerChoice(b) for b in WIDTHS])
    formats = FormatSummarizer(structure, costs, task, batches, bench)
    return structure, costs, task, batches, summarizer, bench, formats


def _group(units, size):
    """The group of so many units."""
    names = units.group[units.removable]
    return next(str(name) for name in np.unique(names) if (names == name).sum() == size)


def _draw(known, fraction=0.14, count=20, **settings):
    structure, costs, _, _, summarizer, _, formats = known
    return sample_formatted_plans(
        structure.units, costs, summarizer.scores, formats.sensitivity, WIDTHS, fraction, count, **settings
    )


def test_plans_differ_and_meet_one_size(known):
    structure, costs, *_ = known
    found = _draw(known, constraints=Constraints(floor=0.3))
    assert len(found.plans) == 20 == len(found.bits)
    assert set(np.unique(found.bits)) <= set(WIDTHS)
    pairs = {removed.tobytes() + bits.tobytes() for removed, bits in zip(found.plans.removed, found.bits, strict=True)}
    assert len(pairs) == 20
    for removed, bits, told in zip(found.plans.removed, found.bits, found.plans.fraction, strict=True):
        _, own = costs.total(removed, bits_by_row(costs, structure.units, bits))
        assert own / costs.dense_weight_bytes == pytest.approx(told)
        assert 0.14 * 0.95 <= told <= 0.14
        for group in np.unique(structure.units.group[structure.units.removable]):
            rows = structure.units.removable & (structure.units.group == group)
            assert removed[rows].sum() <= 0.7 * rows.sum()
    origins = {origin.partition("/")[0] == "whole" for origin in found.plans.origin}
    assert origins == {True, False}
    whole = [origin.startswith("whole/") for origin in found.plans.origin]
    assert not found.plans.removed[whole].any()


def test_the_same_seed_draws_the_same(known):
    first, second, other = _draw(known), _draw(known), _draw(known, seed=1)
    assert np.array_equal(first.plans.removed, second.plans.removed)
    assert np.array_equal(first.bits, second.bits)
    assert not np.array_equal(first.bits, other.bits)


def test_what_nothing_meets_is_refused(known):
    with pytest.raises(BudgetError, match="The smallest costs"):
        _draw(known, fraction=1e-3)
    structure, costs, _, _, summarizer, _, formats = known
    with pytest.raises(CompressError, match="'widths'"):
        sample_formatted_plans(structure.units, costs, summarizer.scores, formats.sensitivity, [], 0.2, 3)


def test_errors_of_what_stays_are_counted(known):
    structure, _, _, batches, summarizer, bench, formats = known
    fisher, units = bench.fisher(batches), structure.units
    removed = np.zeros(len(units), dtype=bool)
    gone = np.flatnonzero(units.removable & (units.group == _group(units, 40)))[[0, 5]]
    removed[gone] = True
    bits = np.array([[8, 2, 4]])
    summary = formats.extend(summarizer.summarize(removed[None]), removed[None], bits)
    index = units.index[gone].tolist()
    stays = [i for i in range(40) if i not in index]
    nats, weights = 0.0, 0
    for layer, pick, rows, columns in (("0", 2, range(6), [0]), ("3", 0, stays, range(216)), ("5", 1, range(3), stays)):
        own = bench.squared_error(layer, pick) * fisher[layer]
        own = own.sum(dim=(2, 3)) if own.ndim > 2 else own
        nats += float(own[list(rows)][:, list(columns)].sum())
    value = dict(zip(summary.plan_names, summary.plan_values[0].tolist(), strict=True))
    assert value["log_format_nats"] == pytest.approx(np.log10(nats), abs=1e-5)
    sizes = np.array([54, 38 * 216, 114])
    weights = sizes.sum()
    assert value["mean_bits"] == pytest.approx(float((sizes * bits[0]).sum() / weights), rel=1e-5)
    assert value["least_bits"] == 2
    assert value["fewest_bits_share"] == pytest.approx(38 * 216 / weights, rel=1e-5)
    assert value["log_kept_weights"] == pytest.approx(np.log10(weights / (54 + 40 * 216 + 120)), abs=1e-5)
    group = dict(zip(summary.names, summary.values[0, summary.groups.index(_group(units, 40))].tolist(), strict=True))
    assert group["least_bits"] == 2
    assert group["bits"] == pytest.approx((38 * 216 * 2 + 114 * 4) / (38 * 216 + 114), rel=1e-5)


def test_bits_that_nobody_tried_are_refused(known):
    structure, _, _, _, summarizer, _, formats = known
    removed = np.zeros((1, len(structure.units)), dtype=bool)
    with pytest.raises(CompressError, match=r"out of \[2, 4, 8\]. Got 3"):
        formats.extend(summarizer.summarize(removed), removed, np.array([[8, 3, 4]]))


def test_rounded_weights_are_what_is_judged(known):
    structure, costs, task, batches, _, bench, _ = known
    plans = PlanBench(structure, costs, task, batches, lambda epoch: batches, {"label": batches}, None)
    oracle = PlanOracle(("at_once", "refitted", "briefly_tuned", "finetuned"), brief_steps=1, epochs=2)
    nothing = np.zeros(len(structure.units), dtype=bool)
    bits = {"0": 4, "3": 2, "5": 4}
    found = {outcome.moment: outcome for outcome in oracle.measure(plans, nothing, bits)}
    _, loss = bench.evaluate([1, 0, 1], batches)
    assert found["at_once"].loss["label"] == pytest.approx(loss, rel=1e-5)
    # Nothing is removed: there is nothing to refit, and nothing spent on it.
    assert found["refitted"].loss == found["at_once"].loss
    assert found["refitted"].training_macs == 0
    assert found["finetuned"].loss["label"] < found["at_once"].loss["label"]
    few = {outcome.moment: outcome.loss["label"] for outcome in oracle.measure(plans, nothing, dict.fromkeys(bits, 2))}
    assert few["at_once"] != found["at_once"].loss["label"]


def test_a_search_finds_units_and_bits_together(known):
    _, costs, _, _, summarizer, _, formats = known
    formula = PlanFormula("log_refit_and_format_nats")
    search = PlanSearch(population=8, rounds=4, children=24, reference=20)

    def run(**settings):
        return search.run(summarizer, formula, "weight_bytes", 0.14, Constraints(floor=0.1), **settings)

    found, again = run(formats=formats), run(formats=formats)
    assert np.array_equal(found.removed, again.removed)
    assert np.array_equal(found.bits, again.bits)
    _, weight_bytes = costs.total(found.removed, formats.rows(found.bits))
    assert weight_bytes <= 0.14 * costs.dense_weight_bytes

    def nats(removed, bits):
        own = formats.extend(summarizer.summarize(removed), removed, bits)
        return own.plan_values[:, own.plan_names.index(formula.column)]

    random = _draw(known, constraints=Constraints(floor=0.1))
    assert nats(found.removed[None], found.bits[None])[0] < nats(random.plans.removed, random.bits).min()
    for settings, told in (({"measured": 4}, "measures no plans"), ({}, "its size is weight_bytes")):
        with pytest.raises(CompressError, match=told):
            replace(search, **settings).run(summarizer, formula, "macs", 0.5, formats=formats, measure=lambda mask: 0.0)
    with pytest.raises(CompressError, match="none may be pinned"):
        search.run(summarizer, formula, "weight_bytes", 0.14, Constraints(pinned=("0",)), formats=formats)
    with pytest.raises(BudgetError, match="all layers whole in 8 bits"):
        search.run(summarizer, formula, "weight_bytes", 0.4, formats=formats)
    # Channels may be pinned: their layers are stored in few bits all the same.
    group = _group(known[0].units, 6)
    pinned = search.run(summarizer, formula, "weight_bytes", 0.14, Constraints(pinned=(group,)), formats=formats)
    assert not pinned.removed[known[0].units.group == group].any()
