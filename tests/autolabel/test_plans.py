"""Plans as data: sampling them at one size, summarising them in numbers, measuring what becomes of them, the bank."""

import dataclasses
import logging
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import compress
from autolabel import reader_errors
from autolabel.allocators import LearnedSearchAllocator
from autolabel.label_bank import TABLES, LabelBank, merge_banks
from autolabel.plan_board import AFTER_REPAIR, boards_of, normal_scores, plan_matrix
from autolabel.plan_oracle import MOMENTS, PlanBench, PlanOracle, RepairedLoss, loss_and_macs
from autolabel.plan_race import PlanRace, brief_training
from autolabel.plan_sampling import sample_plans
from autolabel.plan_search import PlanSearch, _Breeding
from autolabel.plan_summary import PlanSummarizer, PlanSummary
from compress.allocator import Allocator, Constraints
from compress.budget import Budget
from compress.counting import unit_costs
from compress.criteria import FisherCriterion, MagnitudeCriterion, TaylorCriterion
from compress.errors import ArtifactError, BudgetError, CompressError, DataError
from compress.output_sensitivity import collect_output_sensitivity
from compress.scores import Scores
from compress.statistics import collect_statistics
from compress.structure import analyze
from compress.task import evaluate

TASK = compress.ClassificationTask()
CRITERIA = {"magnitude": MagnitudeCriterion(), "fisher": FisherCriterion(), "taylor": TaylorCriterion()}


def make_batches(n_batches=4, size=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(n_batches):
        x = torch.randn(size, 6, generator=generator)
        found.append((x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()))
    return found


@pytest.fixture(scope="module")
def case():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = make_batches()
    compress.finetune_(model, TASK, batches, epochs=20, lr=0.01, optimizer="adamw", progress=False)
    structure = analyze(model.eval(), (batches[0][0][:2],))
    return structure, unit_costs(structure), collect_statistics(structure, TASK, batches)


@pytest.fixture(scope="module")
def sensitivity(case):
    return collect_output_sensitivity(case[0], TASK, make_batches())


def scores_of(statistics):
    return {name: criterion.score(statistics) for name, criterion in CRITERIA.items()}


@settings(max_examples=25, deadline=None)
@given(size=st.sampled_from(["macs", "weight_bytes"]), fraction=st.floats(0.45, 0.9), seed=st.integers(0, 9))
def test_sampled_plans_meet_the_size_and_the_constraints(case, size, fraction, seed):
    structure, costs, statistics = case
    constraints = Constraints(floor=0.2, pinned=("2:out",))
    found = sample_plans(structure.units, costs, scores_of(statistics), size, fraction, 8, seed=seed,
                         constraints=constraints, tolerance=0.2)  # fmt: skip
    dense = {"macs": costs.dense_macs, "weight_bytes": costs.dense_weight_bytes}[size]
    groups = structure.units.group
    for removed, reached in zip(found.removed, found.fraction, strict=True):
        cost = costs.total(removed)[("macs", "weight_bytes").index(size)] / dense
        assert cost == pytest.approx(reached)
        assert 0.8 * fraction <= cost <= fraction + 1e-9
        assert (~removed[groups == "0:out"]).sum() >= 0.2 * 12
        assert not removed[groups == "2:out"].any()
        assert not removed[~structure.units.removable].any()
    assert len({removed.tobytes() for removed in found.removed}) == len(found)


def test_sampling_repeats_and_plans_differ(case):
    structure, costs, statistics = case
    first, second, other = (
        sample_plans(structure.units, costs, scores_of(statistics), "macs", 0.5, 10, seed=seed, tolerance=0.1)
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.removed, second.removed)
    assert first.origin == second.origin
    assert len(first) == 10
    assert not np.array_equal(first.removed, other.removed)
    assert {origin.split(":")[1] for origin in first.origin} == {"layer", "global"}


def test_a_size_that_no_plan_has_is_refused(case):
    structure, costs, statistics = case
    with pytest.raises(BudgetError, match="The smallest costs"):
        sample_plans(structure.units, costs, scores_of(statistics), "macs", 0.01, 3)
    with pytest.raises(CompressError, match="must be one of"):
        sample_plans(structure.units, costs, scores_of(statistics), "flops", 0.5, 3)
    with pytest.raises(CompressError, match="'bad' is not"):
        sample_plans(structure.units, costs, {"bad": np.full(20, np.nan)}, "macs", 0.5, 3)


def test_the_refitted_error_is_that_of_least_squares(case, sensitivity):
    structure, costs, statistics = case
    removed = np.zeros((1, len(structure.units)), dtype=bool)
    removed[0, [1, 4, 7]] = True
    summary = PlanSummarizer(statistics, sensitivity, costs, CRITERIA, ridge=1e-9).summarize(removed)
    layers = dict(structure.traced.module.named_parameters())
    x = torch.cat([batch[0] for batch in make_batches()]).double()
    hidden = (x @ layers["0.weight"].double().T + layers["0.bias"].double()).relu().detach()
    weight = layers["2.weight"].double().detach()
    gone = torch.tensor([1, 4, 7])
    kept = torch.tensor([i for i in range(12) if i not in (1, 4, 7)])
    lost = hidden[:, gone] @ weight[:, gone].T
    design = torch.cat([hidden[:, kept], torch.ones(len(x), 1)], dim=1)
    left = lost - design @ torch.linalg.lstsq(design, lost).solution
    variance = (hidden @ weight.T).var(dim=0, correction=0).sum()
    centred = lost - lost.mean(dim=0)

    def value(name):
        return summary.values[0, 0, summary.names.index(name)]

    assert value("refitted_error") == pytest.approx(float(left.square().mean(0).sum() / variance), rel=1e-3)
    assert value("averaged_error") == pytest.approx(float(centred.square().mean(0).sum() / variance), rel=1e-3)
    assert value("silenced_error") == pytest.approx(float(lost.square().mean(0).sum() / variance), rel=1e-3)
    assert value("kept") == pytest.approx(9 / 12)


def test_wide_readers_say_the_same(case, sensitivity, monkeypatch):
    structure, costs, statistics = case
    removed = sample_plans(structure.units, costs, scores_of(statistics), "macs", 0.6, 6, seed=3, tolerance=0.2).removed
    narrow = PlanSummarizer(statistics, sensitivity, costs, CRITERIA).summarize(removed)
    monkeypatch.setattr(reader_errors, "_WIDE", 1)
    wide = PlanSummarizer(statistics, sensitivity, costs, CRITERIA).summarize(removed)
    np.testing.assert_allclose(wide.values, narrow.values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(wide.plan_values, narrow.plan_values, rtol=1e-5, atol=1e-6)


def test_shares_by_hand(case, sensitivity):
    structure, costs, statistics = case
    score = CRITERIA["magnitude"].score(statistics)[:12]
    order = np.argsort(score)
    best, worst = np.zeros((2, len(structure.units)), dtype=bool)
    best[order[:6]] = True  # the six least important go
    worst[order[6:]] = True
    summary = PlanSummarizer(statistics, sensitivity, costs, CRITERIA).summarize(np.stack([best, worst]))
    share = summary.values[:, 0, summary.names.index("magnitude_share")]
    assert share == pytest.approx(
        [score[order[6:]].sum() / score.sum(), score[order[:6]].sum() / score.sum()], rel=1e-5
    )
    assert summary.values[:, 0, summary.names.index("magnitude_place")] == pytest.approx([1, 0], abs=1e-6)
    fisher = 0.5 * (statistics.need_gradients().astype(np.float64) ** 2).mean(axis=0)
    nats = summary.values[0, 0, summary.names.index("fisher_nats")]
    assert nats == pytest.approx(fisher[order[:6]].sum(), rel=1e-4)
    macs = summary.plan_values[:, summary.plan_names.index("macs")]
    assert macs == pytest.approx([(6 * 6 + 6 * 8 + 24) / (6 * 12 + 12 * 8 + 24)] * 2)


def test_a_plan_that_removes_nothing_loses_nothing(case, sensitivity):
    structure, costs, statistics = case
    nothing = np.zeros((1, len(structure.units)), dtype=bool)
    summary = PlanSummarizer(statistics, sensitivity, costs, CRITERIA).summarize(nothing)
    for name, expected in (
        ("kept", 1),
        ("fisher_share", 1),
        ("refitted_error", 0),
        ("rank_kept", 1),
        ("fisher_nats", 0),
    ):
        np.testing.assert_allclose(summary.values[0, :, summary.names.index(name)], expected, atol=1e-6)


def test_moments_of_a_plan(case):
    structure, costs, _ = case
    judged = {"validation": make_batches(2, seed=5), "test": make_batches(2, seed=6)}
    train = make_batches(8, seed=7)
    bench = PlanBench(structure, costs, TASK, make_batches(), lambda epoch: train, judged, structure.traced.module)
    removed = np.zeros(len(structure.units), dtype=bool)
    removed[[0, 1, 2, 3, 12, 13]] = True
    before = {name: value.clone() for name, value in structure.traced.module.state_dict().items()}
    oracle = PlanOracle(brief_steps=2, epochs=2)
    found = oracle.measure(bench, removed)
    assert [outcome.moment for outcome in found] == list(MOMENTS)
    units = structure.units
    plan = compress.CompressionPlan.removing(units, [units.ids[i] for i in np.flatnonzero(removed)])
    metric, loss = evaluate(compress.simulate_plan(structure, plan), TASK, judged["test"])
    assert found[0].loss["test"] == pytest.approx(loss, rel=1e-5)
    assert found[0].metric["test"] == pytest.approx(metric)
    small, dense = costs.total(removed)[0], costs.dense_macs
    assert found[0].training_macs == 0
    assert found[1].training_macs == pytest.approx(128 * (small + dense))
    assert found[2].training_macs == pytest.approx(found[1].training_macs + 2 * 32 * (3 * small + dense))
    assert found[3].training_macs == pytest.approx(found[1].training_macs + 2 * 8 * 32 * (3 * small + dense))
    assert found[3].loss["validation"] < found[0].loss["validation"]
    # Brief training leaves no trace in what follows it; the dense model stays as it is.
    assert oracle.measure(bench, removed) == found
    alone = PlanOracle(moments=("finetuned",), epochs=2).measure(bench, removed)
    assert alone == found[3:]
    for name, value in structure.traced.module.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(CompressError, match="out of"):
        PlanOracle(moments=("later",))


def small_bank(name="net-a", n_plans=6, n_groups=2, seed=0):
    rng = np.random.default_rng(seed)
    losses = {f"{what}_{moment}_{part}": rng.random(n_plans) for what in ("loss", "metric") for moment in MOMENTS
              for part in ("validation", "test")}  # fmt: skip
    losses |= {f"macs_{moment}": rng.random(n_plans) for moment in MOMENTS}
    return LabelBank(
        networks={"name": np.array([name]), "family": np.array([f"family-{name}"]), "task": np.array(["t"]),
                  "loss_validation": np.array([0.1]), "loss_test": np.array([0.12])},
        plans={"network": np.zeros(n_plans, dtype=np.int64), "macs": np.full(n_plans, 0.5), **losses},
        groups={"plan": np.repeat(np.arange(n_plans), n_groups), "group": np.tile(["a", "b"], n_plans),
                "kept": rng.random(n_plans * n_groups).astype(np.float32)},
        units={"network": np.zeros(3, dtype=np.int64), "damage_at_once": rng.random(3)},
        choices={"network": np.zeros(4, dtype=np.int64), "damage": rng.random(4)},
        configs={"network": np.zeros(2, dtype=np.int64), "damage_test": rng.random(2)},
        about={"group_columns": ["kept"], "plan_columns": ["macs"], "settings": {}},
    )  # fmt: skip


def test_banks_are_merged_saved_and_read_back(tmp_path):
    first, second = small_bank(), small_bank("net-b", n_plans=5, seed=1)
    bank = merge_banks([first, second], {**first.about, "networks": 2})
    bank.save(tmp_path / "bank.npz")
    read = LabelBank.load(tmp_path / "bank.npz")
    assert read.about == bank.about
    for table in TABLES:
        for name, column in getattr(bank, table).items():
            np.testing.assert_array_equal(getattr(read, table)[name], column)
    np.testing.assert_array_equal(read.rows("plans", 1)["loss_finetuned_test"], second.plans["loss_finetuned_test"])
    np.testing.assert_array_equal(read.summary(1).values, second.summary(0).values)
    boards = boards_of(read, MOMENTS)
    assert [(board.network, board.family) for board in boards] == [("net-a", "family-net-a"), ("net-b", "family-net-b")]
    np.testing.assert_array_equal(boards[1].judged_loss["finetuned"], second.plans["loss_finetuned_test"])
    np.testing.assert_array_equal(boards[1].loss["finetuned"], second.plans["loss_finetuned_validation"])
    mean = np.mean([normal_scores(second.plans[f"loss_{moment}_validation"]) for moment in MOMENTS[1:]], axis=0)
    np.testing.assert_allclose(boards[1].target(AFTER_REPAIR), mean)
    np.testing.assert_array_equal(boards[1].target("at_once"), normal_scores(second.plans["loss_at_once_validation"]))
    assert (boards[1].dense_loss, boards[1].judged_dense_loss) == (0.1, 0.12)


def test_a_damaged_bank_is_named(tmp_path):
    path = tmp_path / "bank.npz"
    small_bank().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=r"bank\.npz"):
        LabelBank.load(path)
    np.savez(path, about=np.array('{"schema_version": 9}'), columns=np.array([], dtype=str))
    with pytest.raises(ArtifactError, match="schema version 2"):
        LabelBank.load(path)
    bank = small_bank()
    groups = {**bank.groups, "plan": bank.groups["plan"] + 6}
    with pytest.raises(CompressError, match="'plan' of table 'groups'"):
        dataclasses.replace(bank, groups=groups)


def test_normal_scores():
    assert normal_scores(np.array([3.0, 1.0, 2.0])) == pytest.approx([0.8694, -0.8694, 0.0], abs=1e-3)


def test_the_matrix_of_plans_compares_them_with_one_another():
    names = ("kept", "log_units", "first_layer", "last_layer", "n_makers", "n_readers", "is_head", "macs_share",
             "bytes_share", "sensitivity_share", "log1p_group_nats")  # fmt: skip
    values = np.ones((3, 2, len(names)), dtype=np.float32)
    values[:, :, 0] = [[0.2, 0.4], [0.5, 0.5], [0.9, 0.7]]
    values[:, :, 7] = [0.25, 0.75]
    summary = PlanSummary(("a", "b"), names, values, ("macs",), np.full((3, 1), 0.5, dtype=np.float32))
    matrix, columns = plan_matrix(summary)
    assert matrix.shape == (3, len(columns))

    def column(name):
        return matrix[:, columns.index(name)]

    assert column("kept_mean") == pytest.approx([0.3, 0.5, 0.8])
    assert column("kept_min") == pytest.approx([0.2, 0.5, 0.7])
    assert column("kept_last") == pytest.approx([0.4, 0.5, 0.7])
    assert column("kept_by_macs") == pytest.approx([0.35, 0.5, 0.75])
    assert column("rank_kept_mean") == pytest.approx([-1 / 3, 0, 1 / 3])
    assert column("z_kept_mean").mean() == pytest.approx(0, abs=1e-9)
    assert column("z_macs") == pytest.approx([0, 0, 0])
    with pytest.raises(CompressError, match="at least two"):
        plan_matrix(PlanSummary(("a", "b"), names, values[:1], ("macs",), np.full((1, 1), 0.5, dtype=np.float32)))


class KeepsTheFirst:
    """A stand-in for a labeler, whose favourite is known: plans that keep much of the first group."""

    name = "keeps_the_first"

    def predict(self, summary, reference=None):
        kept = summary.values[:, 0, summary.names.index("kept")].astype(np.float64)
        assert reference is not None
        assert len(reference.plan_values) > 1
        return -kept, np.zeros(len(kept))


class AmongThemselves(KeepsTheFirst):
    """The same, also where plans are compared with one another."""

    def predict(self, summary, reference=None):
        return super().predict(summary, summary if reference is None else reference)


@pytest.mark.parametrize("size", ["macs", "weight_bytes"])
def test_a_search_finds_the_favourite_within_the_size(case, sensitivity, size):
    structure, costs, statistics = case
    summarizer = PlanSummarizer(statistics, sensitivity, costs, CRITERIA)
    rounds = []
    search = PlanSearch(rounds=6, children=24, population=8, reference=12, seed=1)
    constraints, column = Constraints(floor=0.2), ("macs", "weight_bytes").index(size)
    found = search.run(summarizer, KeepsTheFirst(), size, 0.6, constraints, lambda *done: rounds.append(done))
    cost = costs.total(found.removed)[column]
    dense = {"macs": costs.dense_macs, "weight_bytes": costs.dense_weight_bytes}[size]
    assert cost <= 0.6 * dense
    groups = structure.units.group
    # All of the first group stays, as far as the floor of the second lets it.
    second = (~found.removed[groups == "2:out"]).sum()
    assert second == 2
    more = found.removed.copy()
    more[np.flatnonzero((groups == "0:out") & found.removed)[:1]] = False
    assert not found.removed[groups == "0:out"].any() or costs.total(more)[column] > 0.6 * dense
    assert list(found.history) == sorted(found.history, reverse=True)
    assert found.n_judged == 6 * 24
    assert rounds[-1] == (6, 6)
    again = search.run(summarizer, KeepsTheFirst(), size, 0.6, constraints)
    np.testing.assert_array_equal(again.removed, found.removed)


def test_a_search_measures_what_it_likes_and_takes_what_loses_least(case, sensitivity, monkeypatch, caplog):
    structure, costs, statistics = case
    summarizer = PlanSummarizer(statistics, sensitivity, costs, CRITERIA)
    groups, limits, asked, rounds = structure.units.group, Constraints(floor=0.2), [], []

    def measure(removed):
        # The opposite of what the labeler says, with a plan that breaks.
        asked.append(removed.tobytes())
        return float("nan") if len(asked) == 2 else -float(removed[groups == "0:out"].sum())

    def again(removed):
        return float("nan") if removed.tobytes() == asked[1] else -float(removed[groups == "0:out"].sum())

    corrected, correct = [], _Breeding.corrected
    monkeypatch.setattr(_Breeding, "corrected", lambda *a: (corrected.append(correct(*a)), corrected[-1])[1])
    search = PlanSearch(rounds=3, children=24, population=8, reference=12, measured=16, seed=1)
    arguments = summarizer, AmongThemselves(), "macs", 0.6, limits
    found = search.run(*arguments, lambda *done: rounds.append(done), measure=measure)
    assert len(asked) == len(set(asked)) == len(found.losses) == 16
    assert rounds == [(i, 19) for i in range(1, 20)]
    assert measure(found.removed) == np.nanmin(found.losses)
    assert costs.total(found.removed)[0] <= 0.6 * costs.dense_macs
    # It came to plans that the labeler alone likes least.
    unmeasured = dataclasses.replace(search, measured=0).run(*arguments)
    assert unmeasured.losses == ()
    assert measure(found.removed) < measure(unmeasured.removed)
    # After every fourth plan the judge is another one, which knows all of them that did not break.
    assert [len(judge.losses) for judge in corrected] == [3, 7, 11]
    np.testing.assert_array_equal(corrected[-1].losses, [loss for loss in found.losses[:12] if np.isfinite(loss)])
    np.testing.assert_array_equal(found.losses, search.run(*arguments, measure=again).losses)
    # Few plans are enough for a correction.
    corrected.clear()
    dataclasses.replace(search, measured=3).run(*arguments, measure=again)
    assert [len(judge.losses) for judge in corrected] == [2]
    # All that lose nothing finite: the labeler's favourite.
    with caplog.at_level(logging.WARNING):
        broken = dataclasses.replace(search, measured=4).run(*arguments, measure=lambda removed: float("nan"))
    np.testing.assert_array_equal(broken.removed, unmeasured.removed)
    assert "None of 4 measured plans has a finite loss" in caplog.text
    for wrong in (-1, 1):
        with pytest.raises(CompressError, match="no plan, or at least 2"):
            PlanSearch(measured=wrong)
    with pytest.raises(CompressError, match="'measure' parameter"):
        search.run(*arguments)


def bench_of(case):
    structure, costs, _ = case
    train = make_batches(8, seed=7)
    judged = {"validation": make_batches(2, seed=5), "test": make_batches(2, seed=6)}
    return PlanBench(structure, costs, TASK, make_batches(), lambda epoch: train, judged, structure.traced.module)


def test_the_race_is_won_by_the_least_loss_of_the_last_round(case):
    structure, costs, statistics = case
    bench, oracle = bench_of(case), PlanOracle(finetune={"optimizer": "adamw", "lr": 2e-3})
    plans = sample_plans(structure.units, costs, scores_of(statistics), "macs", 0.6, 6, seed=3, tolerance=0.2).removed
    told: list[tuple[int, int]] = []
    found = PlanRace(steps=(1, 3), keep=0.5).run(brief_training(bench, oracle), plans, lambda *done: told.append(done))
    first, second = found.losses
    assert told == [(i, 9) for i in range(1, 10)]
    assert np.isfinite(first).all()
    stayed = np.argsort(first)[:3]
    assert sorted(np.flatnonzero(np.isfinite(second))) == sorted(stayed)
    assert found.winner == int(np.nanargmin(second))
    spent = 0.0
    for steps, alive in ((1, range(6)), (3, stayed)):
        brief = dataclasses.replace(oracle, moments=("briefly_tuned",), brief_steps=steps)
        for i in alive:
            (outcome,) = brief.measure(bench, plans[i])
            assert outcome.loss["validation"] == (first if steps == 1 else second)[i]
            spent += outcome.training_macs + 64 * costs.total(plans[i])[0]
    assert found.forward_macs == pytest.approx(spent)


def test_a_plan_whose_repair_breaks_loses_all(case, monkeypatch):
    bench, known = bench_of(case), {}
    nothing = np.zeros(len(case[0].units), dtype=bool)
    one = nothing.copy()
    one[0] = True
    refitted = PlanOracle(moments=("refitted",))
    measure = RepairedLoss(partial(loss_and_macs, bench, refitted, "validation"), known)
    (outcome,) = refitted.measure(bench, one)
    assert measure(one) == outcome.loss["validation"]
    macs = outcome.training_macs + 64 * case[1].total(one)[0]
    assert measure.forward_macs == pytest.approx(macs)
    # It is not measured again, by another either, but paid for.
    monkeypatch.setattr(PlanOracle, "measure", lambda *a: (_ for _ in ()).throw(DataError("not finite")))
    again = RepairedLoss(partial(loss_and_macs, bench, refitted, "validation"), known)
    assert (again(one), again.forward_macs) == (measure(one), pytest.approx(macs))
    assert again(nothing) == float("inf")
    assert len(known) == 2


def test_a_race_without_rivals_costs_nothing(case):
    nothing = np.zeros((1, len(case[0].units)), dtype=bool)
    found = PlanRace().run(brief_training(bench_of(case), PlanOracle()), nothing)
    assert (found.winner, found.losses, found.forward_macs) == (0, (), 0.0)
    with pytest.raises(CompressError, match="at least one candidate"):
        PlanRace().run(brief_training(bench_of(case), PlanOracle()), [])
    for wrong in ({"steps": ()}, {"steps": (0,)}, {"keep": 1.0}):
        with pytest.raises(CompressError, match="PlanRace needs"):
            PlanRace(**wrong)


def test_errors_of_a_plan_are_added_up_over_readers(case, sensitivity):
    structure, costs, statistics = case
    removed = np.zeros((1, len(structure.units)), dtype=bool)
    removed[0, [1, 4, 7]] = True
    summarizer = PlanSummarizer(statistics, sensitivity, costs, CRITERIA, ridge=1e-9)
    summary = summarizer.summarize(removed)
    layers = dict(structure.traced.module.named_parameters())
    x = torch.cat([batch[0] for batch in make_batches()]).double()
    hidden = (x @ layers["0.weight"].double().T + layers["0.bias"].double()).relu().detach()
    lost = hidden[:, [1, 4, 7]] @ layers["2.weight"].double().detach()[:, [1, 4, 7]].T
    lost = lost - lost.mean(dim=0)
    covariance = lost.T @ lost / len(lost)
    output = float((covariance * sensitivity.outputs["linear_1"]).sum()) / sensitivity.output_energy
    nats = float((covariance * sensitivity.loss["linear_1"]).sum()) / 2

    def value(name):
        return summary.plan_values[0, summary.plan_names.index(name)]

    assert value("averaged_output_sum") == pytest.approx(np.log10(output), rel=1e-3)
    assert value("averaged_loss_sum") == pytest.approx(np.log10(nats), rel=1e-3)
    assert value("averaged_output_largest") == value("averaged_output_sum")
    kept = 1 - summary.values[0, 0, summary.names.index("refitted_error")]
    assert value("refitted_kept_variance") == pytest.approx(np.log(kept), rel=1e-3)
    assert value("refitted_output_sum") < value("averaged_output_sum")


def test_the_allocator_writes_the_plan_of_the_search(case, sensitivity):
    structure, costs, statistics = case
    units = structure.units
    summarizer = PlanSummarizer(statistics, sensitivity, costs, CRITERIA)
    search = PlanSearch(rounds=3, children=12, population=6, reference=12, seed=1)
    allocator = LearnedSearchAllocator(summarizer, KeepsTheFirst(), search)
    assert isinstance(allocator, Allocator)
    constraints = Constraints(floor=0.2)
    plan = compress.allocate(units, None, costs, Budget(macs=0.6), allocator=allocator, constraints=constraints)
    found = search.run(summarizer, KeepsTheFirst(), "macs", 0.6, constraints)
    np.testing.assert_array_equal(plan.removed_mask(units), found.removed)
    assert plan.predicted_cost["macs"] == costs.total(found.removed)[0] <= 0.6 * costs.dense_macs
    assert plan.provenance["allocator"] == "learned_search"
    # Scores join as one more order: here the only one that keeps the units that the formulas like least.
    fisher = statistics.need_gradients()
    values = np.full((len(units), 1), np.nan)
    values[: len(fisher[0]), 0] = -(fisher**2).mean(axis=0)
    ordered = allocator.allocate(units, Scores(units.ids, ("removed",), values, "order"), costs, Budget(macs=0.6),
                                 constraints)  # fmt: skip
    again = search.run(summarizer, KeepsTheFirst(), "macs", 0.6, constraints, None, {"scores": values[:20, 0]})
    np.testing.assert_array_equal(ordered.removed_mask(units), again.removed)
    with pytest.raises(CompressError, match="exactly one bound"):
        allocator.allocate(units, None, costs, Budget(macs=0.5, weight_bytes=0.5), constraints)
    with pytest.raises(BudgetError):
        allocator.allocate(units, None, costs, Budget(macs=0.001), constraints)
