"""The whole road in one call on a tiny trained net, and its refusals."""

import copy
import functools
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import autolabel
import compress
from autolabel import pipeline
from autolabel.call_checks import warn_of_weights
from autolabel.labelers import MeanLabeler, RidgeLabeler
from autolabel.learning import join_scores
from autolabel.oracles import RemovalOracle
from autolabel.plan_search import PlanSearch
from autolabel.tables import LabelTable
from compress.budget import Budget
from compress.errors import BudgetError, CompressError, DataError
from compress.scores import Scores
from compress.task import ClassificationTask, evaluate

TASK = ClassificationTask()
CRITERIA = {"second_order", "fisher", "taylor", "reconstruction"}


@pytest.fixture(autouse=True)
def searches_are_short(monkeypatch):
    """What a search comes to is seen in tests/autolabel/test_plans.py; here it is only to take place."""
    monkeypatch.setattr(pipeline, "PlanSearch", functools.partial(PlanSearch, 8, 3, 16, reference=20))


def make_data(n_batches: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Four classes: the signs of two sums of pixels."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(n_batches):
        x = torch.randn(32, 1, 4, 4, generator=generator)
        y = (x[:, 0, :2].sum((1, 2)) > 0).long() + 2 * (x[:, 0, :, :2].sum((1, 2)) > 0).long()
        batches.append((x, y))
    return batches


@pytest.fixture(name="trained", scope="module")
def a_tiny_trained_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                              nn.Linear(128, 12), nn.ReLU(), nn.Linear(12, 4))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for x, y in make_data(60, 1):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def test_end_to_end_within_the_budget(trained):
    model, before = copy.deepcopy(trained), copy.deepcopy(trained.state_dict())
    rng = torch.random.get_rng_state()
    train, calibration, validation = make_data(10, 2), make_data(4, 3), make_data(4, 4)
    result = autolabel.auto_compress(model, TASK, train, calibration, calibration[0][0], Budget(macs=0.5),
                                     validation=validation, labeler=RidgeLabeler(), sample=12, epochs=1)  # fmt: skip
    dense = compress.unit_costs(result.structure)
    macs, weight_bytes = dense.total(result.plan.removed_mask(result.structure.units))
    assert 0.4 * dense.dense_macs < macs <= 0.5 * dense.dense_macs
    assert weight_bytes == 4 * sum(p.numel() for p in result.model.parameters())
    assert result.plan.predicted_cost["macs"] == macs
    assert result.method in result.validation
    searched = {"plans/search", "refit_loss/search"}
    assert set(result.validation) == CRITERIA | {"labeler"} | searched
    assert result.validation[result.method] == min(result.validation.values())
    assert result.plan.provenance["method"] == result.method
    assert list(result.stages) == ["dense", "pruned", "recovered", "fine_tuned"]
    assert result.stages["dense"] == evaluate(model, TASK, validation)
    assert result.stages["fine_tuned"] == evaluate(result.model, TASK, validation)
    assert result.stages["recovered"][1] == result.validation[result.method]
    assert result.stages["fine_tuned"][0] > result.stages["dense"][0] - 10
    assert (result.learned.measured.source == "measured").all()
    assert np.isfinite(result.learned.measured.damage).sum() == 12
    assert np.isfinite(result.learned.labels.damage[:, 0]).all()
    assert result.learned.agreement[0].name == "ridge"
    assert {a.name for a in result.learned.agreement} == CRITERIA | {"ridge"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert not model.training


def test_without_labels_plans_are_searched_for_the_labeler_and_a_formula(trained, monkeypatch):
    monkeypatch.setattr(RemovalOracle, "measure", lambda *a: pytest.fail("a removal was measured"))
    plans, search = [], pipeline._search
    monkeypatch.setattr(pipeline, "_search", lambda *a: plans.append(search(*a)) or plans[-1])
    calibration, judged = make_data(4, 3), make_data(2, 5)
    result = autolabel.auto_compress(trained, TASK, [], calibration, calibration[0][0], Budget(macs=0.5),
                                     label=judged, sample=0, epochs=0)  # fmt: skip
    assert result.learned is None
    assert set(result.validation) == CRITERIA | {"plans/search", "refit_loss/search"}
    (found,) = plans
    assert [plan.provenance["plan_labeler"] for plan in found.values()] == ["blend", "formula:refitted_loss_sum"]
    for plan in found.values():
        # More than founders and their children.
        assert plan.provenance["search"]["judged"] > 32
        assert plan.predicted_cost["macs"] <= 0.5 * compress.unit_costs(result.structure).dense_macs
    assert "the labeler's competence" in found["plans/search"].provenance["competence"]["told"]
    assert "competence" not in found["refit_loss/search"].provenance


def test_equal_plans_of_two_methods_are_repaired_once(trained, monkeypatch):
    repaired, repair = [], pipeline.recover_
    monkeypatch.setattr(pipeline, "recover_", lambda *a, **k: (repaired.append(k["plan"]), repair(*a, **k)))
    # Both searches ask the labeler that ships.
    monkeypatch.setattr(pipeline, "PlanFormula", pipeline.load_plan_labeler)
    train, calibration = make_data(2, 2), make_data(4, 3)
    result = autolabel.auto_compress(trained, TASK, train, calibration, calibration[0][0], Budget(macs=0.5), sample=0,
                                     epochs=0)  # fmt: skip
    assert result.validation["plans/search"] == result.validation["refit_loss/search"]
    distinct = {tuple(sorted(plan.remove_channels.items())) for plan in repaired}
    assert len(repaired) == len(distinct) < len(result.validation)
    assert result.stages["recovered"][1] == min(result.validation.values())


def test_both_searches_measure_a_few_plans(trained, monkeypatch, caplog):
    plans, search = [], pipeline._search
    monkeypatch.setattr(pipeline, "_search", lambda *a: plans.append(search(*a)) or plans[-1])
    calibration, judged = make_data(4, 3), make_data(2, 5)
    with caplog.at_level(logging.WARNING, "autolabel.pipeline"):
        autolabel.auto_compress(trained, TASK, [], calibration, calibration[0][0], Budget(macs=0.5), label=judged,
                                sample=0, search_plans=4, epochs=0)  # fmt: skip
        autolabel.auto_compress(trained, TASK, [], calibration, calibration[0][0], Budget(macs=0.5, weight_bytes=0.9),
                                label=judged, sample=0, search_plans=4, epochs=0)  # fmt: skip
    (found,) = plans
    assert [plan.provenance["plan_labeler"] for plan in found.values()] == ["blend+4", "formula:refitted_loss_sum+4"]
    for plan in found.values():
        assert plan.provenance["search_plans"]["measured"] == 4
        assert plan.provenance["search_plans"]["forward_macs"] > 0
    assert "No plans are searched, and none measured" in caplog.text


def test_statistics_that_say_nothing_of_plans_leave_the_formulas(trained, monkeypatch, caplog):
    def wrong(*arguments):
        raise CompressError("PlanSummary.values must be finite.")

    monkeypatch.setattr(pipeline.PlanSummarizer, "summarize", wrong)
    calibration = make_data(4, 3)
    with caplog.at_level(logging.WARNING, "autolabel.pipeline"):
        result = autolabel.auto_compress(trained, TASK, [], calibration, calibration[0][0], Budget(macs=0.5), sample=0,
                                         epochs=0)  # fmt: skip
    assert set(result.validation) == CRITERIA
    assert "No plans are searched: PlanSummary.values must be finite." in caplog.text


def test_models_that_cannot_be_judged_are_told_what_to_do():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))

        def forward(self, x):
            return self.net(x), x

    class First(type(TASK)):
        def loss(self, outputs, batch):
            return super().loss(outputs[0], batch)

    batches = make_data(4, 3)
    remedy = "gives a tuple: wrap the model in a module that returns that tensor alone, or have the task's loss read it"
    with pytest.raises(DataError, match=remedy):
        autolabel.auto_compress(Pair(), TASK, [], batches, batches[0][0], Budget(macs=0.5), epochs=0)
    with pytest.raises(DataError, match="gives a tuple, and the metric needs one tensor, examples first"):
        autolabel.auto_compress(Pair(), First(), [], batches, batches[0][0], Budget(macs=0.5), epochs=0)
    for dtype in (torch.bfloat16, torch.float16):
        half = [(x.to(dtype), y) for x, y in batches]
        with pytest.raises(DataError, match=r"float16\. Labels, repair and bytes are those of float32"):
            autolabel.auto_compress(nn.Sequential(Pair().net.to(dtype)).append(nn.Identity()), TASK, [], half,
                                    half[0][0], Budget(macs=0.5), epochs=0)  # fmt: skip


def test_macs_that_are_not_counted_are_told(caplog):
    class Front(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.tail = nn.GRU(4, 6, batch_first=True), nn.Sequential(nn.Linear(6, 8), nn.ReLU())
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.tail(self.gru(x[:, 0])[0][:, -1]))

    torch.manual_seed(0)
    batches = make_data(4, 3)
    with caplog.at_level(logging.WARNING, "autolabel.pipeline"):
        autolabel.auto_compress(Front(), TASK, [], batches, batches[0][0], Budget(macs=0.9), sample=0, epochs=0)
        assert "MACs of gru are not counted: a bound on MACs is one of all other layers." in caplog.text
        caplog.clear()
        autolabel.auto_compress(Front(), TASK, [], batches, batches[0][0], Budget(weight_bytes=0.9), sample=0, epochs=0)
    assert "are not counted" not in caplog.text


def test_weights_outside_of_layers_are_told_and_searched(caplog):
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(16, 12)), nn.Parameter(torch.randn(12, 4))

        def forward(self, x):
            return F.relu(x.flatten(1) @ self.first) @ self.second

    torch.manual_seed(0)
    batches = make_data(4, 3)
    with caplog.at_level(logging.WARNING, "autolabel.call_checks"):
        result = autolabel.auto_compress(Products(), TASK, [], batches, batches[0][0], Budget(macs=0.5), sample=0,
                                         epochs=0)  # fmt: skip
    assert "(x @ w): they stay float32, and the refit leaves them alone: first, second. Make them" in caplog.text
    assert "plans/search" in result.validation
    assert result.model.second.shape[0] <= 6


def test_weights_that_forward_computes_are_told(caplog):
    normed = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(16, 8)), nn.ReLU(),
                           nn.Linear(8, 4))  # fmt: skip
    warn_of_weights(normed, compress.analyze(normed, torch.randn(2, 1, 4, 4)))
    assert "by parametrizations of 1: little of these layers can go. Fold them first" in caplog.text
    assert "x @ w" not in caplog.text


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method.:DeprecationWarning")
def test_the_context_of_the_caller_does_not_matter(trained):
    batches = make_data(4, 3)
    call = functools.partial(autolabel.auto_compress, task=TASK, train=batches[:1], calibration=batches,
                             example_inputs=batches[0][0], budget=Budget(macs=0.5), sample=0)  # fmt: skip
    expected = call(trained, epochs=1).model.state_dict()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = call(trained, epochs=1).model.state_dict()
        assert not torch.is_grad_enabled()
    compiled = call(torch.compile(trained), epochs=1).model.state_dict()
    for other in (found, compiled):
        assert list(other) == list(expected)
        assert all(torch.equal(other[name], value) for name, value in expected.items())
    with torch.inference_mode():
        unfit = nn.Linear(2, 2)
    with pytest.raises(DataError, match=r"'weight' was made under torch\.inference_mode"):
        call(unfit, epochs=1)


class Level:
    """One number for each example, without a dimension of its own."""

    metric_name, higher_is_better = "mean_squared_error", False

    def inputs(self, batch):
        return (batch[0],)

    def loss(self, outputs, batch):
        return (outputs - batch[1]).square()

    def score(self, outputs, batches):
        return (outputs - torch.cat([y for _, y in batches])).square().mean().item()


def test_only_classifiers_imitate_the_model_unless_told_otherwise(trained, monkeypatch):
    teachers = []

    def finetune(*args, teacher, real=pipeline.finetune_, **kwargs):
        teachers.append(teacher)
        return real(*args, teacher=teacher, **kwargs)

    monkeypatch.setattr(pipeline, "finetune_", finetune)
    relu, last = nn.ReLU(), nn.Sequential(nn.Linear(12, 1), nn.Flatten(0))
    regressor = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), relu, nn.Linear(12, 12), relu, last)
    batches = make_data(3, 3)
    levels = [(x, x.mean((1, 2, 3))) for x, _ in batches]
    budget = Budget(weight_bytes=0.6)
    result = autolabel.auto_compress(regressor, Level(), levels, levels, levels[0][0], budget, sample=4, epochs=1)
    assert result.stages["fine_tuned"][0] == pytest.approx(result.stages["fine_tuned"][1], rel=1e-5)
    for distill in (None, False):
        autolabel.auto_compress(trained, TASK, batches, batches, batches[0][0], budget, sample=4, epochs=1,
                                distill=distill)  # fmt: skip
    assert teachers == [None, trained, None]


def test_where_no_plan_can_be_searched_the_others_go_on(trained, caplog):
    calibration = make_data(2, 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 4))
    with caplog.at_level(logging.WARNING, "autolabel.pipeline"):
        # With so few units no plan comes near the size.
        result = autolabel.auto_compress(model, TASK, [], calibration, calibration[0][0], Budget(macs=0.4), epochs=0,
                                         label=make_data(1, 5), sample=0)  # fmt: skip
    assert "plans/search" not in result.validation
    assert "No plans are searched: No random plan comes near 0.4 of the dense macs" in caplog.text
    assert result.plan.predicted_cost["macs"] <= 0.4 * compress.unit_costs(result.structure).dense_macs
    found = autolabel.auto_compress(trained, TASK, [], calibration, calibration[0][0], Budget(bit_operations=0.5),
                                    epochs=0, label=make_data(1, 5), sample=0)  # fmt: skip
    assert "plans/search" not in found.validation


def test_bits_and_bytes(trained):
    calibration = make_data(2, 3)
    result = autolabel.auto_compress(trained, TASK, make_data(2, 2), calibration, calibration[0][0],
                                     Budget(macs=0.7, weight_bytes=0.2), label=make_data(2, 5), labeler=MeanLabeler(),
                                     sample=None, bits=(8, 4), epochs=0)  # fmt: skip
    assert result.plan.activation_bits == 8
    assert {"4"} <= set(result.plan.layer_formats) <= {"0", "4", "6"}  # "4" holds 86 % of the bytes
    assert result.plan.predicted_cost["weight_bytes"] <= 0.2 * compress.unit_costs(result.structure).dense_weight_bytes
    assert result.stages["quantized"] == evaluate(result.model, TASK, make_data(2, 5))


def test_the_fallback_is_logged_and_written_down(trained, monkeypatch, caplog):
    """Labels that call the worst choice the best lose to a formula."""

    def upside_down(measured, predicted):
        return LabelTable(predicted.unit_ids, predicted.choices, 10 - measured.damage, predicted.std_err,
                          predicted.lower, predicted.upper, predicted.source)  # fmt: skip

    monkeypatch.setattr("autolabel.learning.merge_labels", upside_down)
    calibration = make_data(4, 3)
    with caplog.at_level(logging.WARNING, "autolabel.pipeline"):
        result = autolabel.auto_compress(trained, TASK, [], calibration, calibration[0][0], Budget(macs=0.4),
                                         labeler=MeanLabeler(), sample=None, epochs=0)  # fmt: skip
    assert result.method != "labeler"
    assert result.validation["labeler"] > result.validation[result.method]
    assert result.plan.provenance["method"] == result.method
    assert f"The labeler's plan loses to {result.method}" in caplog.text


def test_an_unmeetable_budget_is_refused_before_any_work(trained, monkeypatch):
    asked = []
    monkeypatch.setattr(RemovalOracle, "measure", lambda *a: asked.append(a))
    monkeypatch.setattr(pipeline, "collect_statistics", lambda *a: asked.append(a))
    calibration = make_data(2, 3)
    with pytest.raises(BudgetError, match="Closest feasible: Budget"):
        autolabel.auto_compress(trained, TASK, [], calibration, calibration[0][0], Budget(macs=1e-4))
    assert asked == []


def test_milliseconds_are_bounded_by_layers_that_are_timed_first(trained, monkeypatch):
    tables, timed = [], pipeline.measure_latencies

    def measured(structure, choices):
        table = timed(structure, choices, repeats=1, passes=1)
        # The engine ran every layer in every choice; what it took is not of today's load.
        known = {name: {layer: 4.0 for layer in times} for name, times in table.median_ms.items()}
        tables.append(replace(table, median_ms=known))
        return tables[-1]

    monkeypatch.setattr(pipeline, "measure_latencies", measured)
    calibration = make_data(4, 3)
    result = autolabel.auto_compress(trained, TASK, [], calibration, calibration[0][0], Budget(latency_ms=6.5),
                                     label=make_data(2, 5), labeler=RidgeLabeler(), sample=8, epochs=0)  # fmt: skip
    assert set(tables[0].median_ms) == {"32bit", "8bit"}
    assert len(tables[0].median_ms["32bit"]) == 3
    assert 5.0 < result.plan.predicted_cost["latency_ms"] <= 6.5
    assert result.plan.remove_channels
    with pytest.raises(BudgetError, match=r"'latency_ms' .* a number above 1"):
        Budget(latency_ms=float("inf"))
    with pytest.raises(BudgetError, match=r"'macs' .* an int above 1"):
        Budget(macs=1.5)


def test_bad_calibration_is_refused(trained):
    batches = make_data(2, 3)
    x, y = batches[0]
    with pytest.raises(DataError, match=r"at least two batches when 'label' is not given.*Got 1"):
        autolabel.auto_compress(trained, TASK, batches, [(x, y)], x, Budget(macs=0.5))
    with pytest.raises(DataError, match="at least one calibration batch"):
        autolabel.auto_compress(trained, TASK, batches, [], x, Budget(macs=0.5), label=batches)
    with pytest.raises(DataError, match="at least one batch"):
        autolabel.auto_compress(trained, TASK, batches, batches, x, Budget(macs=0.5), label=[], labeler=MeanLabeler())
    with pytest.raises(DataError, match=r"shape \(32, 1, 5, 4\)"):
        autolabel.auto_compress(trained, TASK, batches, [(torch.zeros(32, 1, 5, 4), y), (x, y)], x, Budget(macs=0.5))
    with pytest.raises(DataError, match="NaN"):
        autolabel.auto_compress(trained, TASK, batches, [(x * float("nan"), y), (x, y)], x, Budget(macs=0.5))


def test_scores_of_units_and_layers_are_joined():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    structure = compress.analyze(model, torch.zeros(1, 2))
    units = structure.units
    removal = Scores(units.ids[:3], ("removed",), np.array([[1.0], [2.0], [3.0]]), "order")
    joined = join_scores(structure, removal)
    assert joined.choices == ("removed",)
    assert joined.scale == "order"
    np.testing.assert_array_equal(joined.removal, [1, 2, 3, *[np.nan] * (len(units) - 3)])
    damage = np.full((len(units), 1), np.nan)
    damage[3:, 0] = 0.5
    empty = np.full_like(damage, np.nan)
    formats = LabelTable(units.ids, ("8bit",), damage, empty, empty, empty, np.full(len(units), "measured"))
    joined = join_scores(structure, removal, formats)
    assert joined.choices == ("removed", "8bit")
    np.testing.assert_array_equal(joined.values[:, 1], damage[:, 0])
    np.testing.assert_array_equal(joined.removal[:3], [1, 2, 3])


@pytest.mark.parametrize(
    ("train", "message"),
    [([], "'train' parameter of auto_compress must hold at least one batch"),
     ([(torch.randn(4, 1, 5, 5), torch.zeros(4, dtype=torch.long))], "Batch 0 has shape"),
     ([(torch.randn(4, 1, 4, 4), torch.zeros(3, dtype=torch.long))], r"loss cannot be computed on a batch of \(4, 1"),
     ([(torch.randn(4, 1, 4, 4), torch.full((4,), 9))], "Check the labels: their number, their type and their range"),
     ([(torch.randn(4, 1, 4, 4), torch.zeros(4))], "Check the labels")],
)  # fmt: skip
def test_bad_training_batches_are_refused_before_anything_is_measured(trained, monkeypatch, train, message):
    monkeypatch.setattr(pipeline, "learn_labels", lambda *a, **k: pytest.fail("work had begun"))
    monkeypatch.setattr(pipeline, "collect_statistics", lambda *a, **k: pytest.fail("work had begun"))
    batches = make_data(4, 3)
    with pytest.raises(DataError, match=message):
        autolabel.auto_compress(trained, TASK, train, batches, batches[0][0], Budget(macs=0.5))


BAD = [(torch.randn(8, 1, 4, 4), torch.full((8,), 9))]
DOUBLE = [(torch.randn(8, 1, 4, 4).double(), torch.zeros(8, dtype=torch.long))] * 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("epochs", -1, "an int of at least 0. Got -1."), ("epochs", 1.5, "an int of at least 0. Got 1.5."),
     ("lr", -1, "a number above 0"), ("lr", float("nan"), "a number above 0"), ("lr", "fast", "a number above 0"),
     ("allocator", "greed", "one of ['uniform', 'greedy'"), ("allocator", 3, "or an Allocator. Got 3."),
     ("bits", (1,), "a sequence of widths out of (8, 7,"), ("bits", 8, "a sequence of widths out of (8, 7,"),
     ("search_plans", -1, "0, or an int of at least 2"), ("search_plans", 1, "one plan says nothing. Got 1."),
     ("sample", -1, "an int of at least 0, or None"), ("seed", -1, "an int from 0 to 2147483647. Got -1."),
     ("budget", 0.5, "a compress.Budget, such as Budget(macs=0.5). Got 0.5."), ("budget", {}, "a compress.Budget"),
     ("labeler", "gbdt", "a labeler out of autolabel.labelers, such as GBDTLabeler()"),
     ("labeler", MeanLabeler, "a labeler out of autolabel.labelers"), ("constraints", 0.1, "a compress.Constraints"),
     ("task", None, "such as ClassificationTask()"), ("task", object(), "such as ClassificationTask()"),
     ("model", "abc", "a torch.nn.Module. Got 'abc'."), ("calibration", None, "a list of batches, such as"),
     ("model", nn.Linear(16, 4).double(), "of float32, as budgets and bytes are: pass model.float(). Got 'weight of"),
     ("model", nn.Linear(16, 4).requires_grad_(False), "or epochs=0 must leave the fine-tuning out"),
     ("distill", "no", "True, False or None. Got 'no'."), ("train", torch.zeros(3), "a list of batches, such as"),
     ("label", [], "must hold at least one batch"),
     ("validation", [], "must hold at least one batch"), ("validation", BAD, "does not fit. The task's loss cannot"),
     ("label", BAD, "does not fit. The task's loss cannot"), ("calibration", BAD * 2, "does not fit. The task's loss"),
     ("calibration", [{"x": 1}] * 2, "cannot read its batches (KeyError: 0.)"),
     ("calibration", DOUBLE, "does not fit. Batch 0 is of float64, but the model was traced with float32")],
)  # fmt: skip
def test_a_wrong_parameter_is_named_before_anything_is_measured(trained, monkeypatch, name, value, message):
    for work in ("learn_labels", "collect_statistics"):
        monkeypatch.setattr(pipeline, work, lambda *a, **k: pytest.fail("work had begun"))
    batches = make_data(4, 3)
    given = {
        "model": trained, "task": TASK, "train": batches, "calibration": batches, "example_inputs": batches[0][0],
        "budget": Budget(macs=0.5), "label": None if name == "calibration" else batches, name: value,
    }  # fmt: skip
    with pytest.raises(CompressError) as error:
        autolabel.auto_compress(**given)
    assert f"The '{name}' parameter of auto_compress " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("model", [nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), nn.Flatten()])
def test_a_model_of_which_nothing_can_go_is_refused_with_the_reasons(model):
    batches = [(torch.randn(4, 1, 4, 4), torch.zeros(4, dtype=torch.long))] * 2
    with pytest.raises(CompressError, match="Nothing of this model can be removed") as error:
        autolabel.auto_compress(model, TASK, batches, batches, batches[0][0], Budget(macs=0.5))
    assert ("output of the model" in str(error.value)) == bool(list(model.parameters()))


def test_batches_that_come_once_are_all_trained_on(trained):
    train, calibration = make_data(3, 2), make_data(2, 3)
    found = [
        autolabel.auto_compress(copy.deepcopy(trained), TASK, batches, calibration, calibration[0][0],
                                Budget(macs=0.5), labeler=MeanLabeler(), sample=4, bits=(8,), epochs=2)
        for batches in (train, (batch for batch in train))
    ]  # fmt: skip
    assert found[0].stages == found[1].stages


@pytest.mark.parametrize("labels", [torch.zeros(31, dtype=torch.long), torch.full((32,), 4), torch.zeros(32)])
def test_calibration_labels_that_do_not_fit_are_named(trained, labels):
    good = make_data(4, 3)
    bad = [*good[:3], (good[3][0], labels)]
    for attempt in (
        lambda: autolabel.extract_features(trained, None, TASK, bad),
        lambda: autolabel.measure(trained, None, TASK, bad, RemovalOracle()),
        lambda: evaluate(trained, TASK, bad),
        lambda: compress.finetune_(copy.deepcopy(trained), TASK, bad, epochs=1, progress=False),
    ):
        with pytest.raises(DataError, match="Check the labels"):
            attempt()
    misshaped = [*good[:1], (torch.randn(32, 1, 5, 5), good[0][1])]
    with pytest.raises(DataError, match="does not run on inputs of"):
        compress.finetune_(copy.deepcopy(trained), TASK, misshaped, epochs=1, progress=False)


class Named(nn.Module):
    """Takes its inputs by name."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.net(pixels)


def test_example_inputs_may_be_named(trained):
    calibration = make_data(4, 3)
    found = [
        autolabel.auto_compress(copy.deepcopy(model), TASK, [], calibration, inputs, Budget(macs=0.5),
                                labeler=RidgeLabeler(), sample=12, epochs=0)
        for model, inputs in ((trained, calibration[0][0]), (Named(trained), {"pixels": calibration[0][0]}))
    ]  # fmt: skip
    assert found[0].stages["recovered"] == pytest.approx(found[1].stages["recovered"], rel=1e-5)
