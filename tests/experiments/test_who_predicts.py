"""Who predicts: splits that never leak, numbers by hand, and a table with every predictor."""

import dataclasses
import re

import numpy as np
import pytest

from autolabel.feature import signed_log
from autolabel.label_bank import LabelBank
from autolabel.plan_board import PlanBoard
from autolabel.plan_labelers import RidgePlanLabeler
from autolabel.plan_oracle import MOMENTS
from autolabel.plan_summary import PlanSummary
from autolabel.unit_board import ACROSS_LAYERS, SCOPES, WITHIN_LAYERS, UnitBoard, unit_boards_of
from compress.errors import CompressError
from experiments.ablations import INGREDIENTS, LearnedOtherwise, WithoutColumns
from experiments.choice_predictors import choice_boards_of, judge_choice_labelers, judge_choices, predict_choices
from experiments.plan_formulas import formulas, measured_sums, unit_formulas, unpack_masks
from experiments.unit_predictors import TRUTHS, judge_unit_labelers, judge_units
from experiments.who_predicts import (
    COLUMNS,
    SPLITS,
    Prediction,
    Row,
    assert_disjoint,
    held_out,
    judge_few_shot,
    judge_formulas,
    judge_predictions,
    predict_boards,
    seen_with,
    summarize,
)

NAMES = ("macs_share", "kept", "log_kept", "refitted_error", "fisher_share")

FIXED = ("log_units", "first_layer", "last_layer", "n_makers", "n_readers", "is_head", "macs_share", "bytes_share",
         "sensitivity_share", "log1p_group_nats")  # fmt: skip
PLAN_NAMES = ("refitted_kept_variance", "log_removed_fisher", "refitted_output_sum", "refitted_loss_sum")


def board(network, family, task, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.random((8, 2, len(NAMES))).astype(np.float32)
    plan = rng.random((8, len(PLAN_NAMES))).astype(np.float32)
    summary = PlanSummary(("a", "b"), NAMES, values, PLAN_NAMES, plan)
    loss = {moment: rng.random(8) for moment in MOMENTS}
    metric = {moment: 100 * rng.random(8) for moment in MOMENTS}
    return PlanBoard(network, family, task, summary, loss, loss, metric, 0.1)


BOARDS = [board(f"{f}-{t}-{i}", f, t, 10 * i) for f in ("mlp", "conv", "attention") for t in ("digits", "text")
          for i in range(2)]  # fmt: skip


class Spy:
    """Remembers what it learned from."""

    learned: list[list[PlanBoard]] = []
    name = "spy"

    def fit(self, boards, moment="finetuned"):
        Spy.learned.append(list(boards))
        return self

    def predict(self, summary):
        return summary.values[:, 0, 1].astype(np.float64), np.zeros(len(summary.values))


@pytest.mark.parametrize("split", ["family_and_task", "network"])
def test_every_board_is_judged_once_by_who_never_saw_it(split):
    folds = held_out(BOARDS, split)
    assert sorted(i for fold in folds for i in fold) == list(range(len(BOARDS)))
    for fold in folds:
        train, test = seen_with(BOARDS, fold, split), [BOARDS[i] for i in fold]
        assert not {b.network for b in train} & {b.network for b in test}
        if split == "family_and_task":
            assert not {b.family for b in train} & {b.family for b in test}
            assert not {b.task for b in train} & {b.task for b in test}
        assert_disjoint(train, test, split)


def test_a_leak_is_not_passed_over():
    for leak in (BOARDS[0], dataclasses.replace(BOARDS[0], network="other")):
        with pytest.raises(AssertionError):
            assert_disjoint([leak], [BOARDS[0]], "family_and_task")


def test_labelers_learn_from_the_other_boards_only():
    Spy.learned = []
    rows = judge_predictions(predict_boards(BOARDS, {"spy": Spy}, "finetuned"), "finetuned")
    assert len(rows) == 2 * len(BOARDS)
    assert len(Spy.learned) == len(held_out(BOARDS, "family_and_task")) + len(held_out(BOARDS, "network"))
    assert all(0 < len(train) < len(BOARDS) for train in Spy.learned)


def test_known_networks_teach_and_the_others_are_judged():
    known, judged = BOARDS[::2], BOARDS[1::2]
    Spy.learned = []
    found = list(predict_boards(judged, {"spy": Spy}, "finetuned", known=known))
    assert sorted((p.board.network, p.split) for p in found) == sorted(
        (board.network, split) for board in judged for split in ("family_and_task", "network")
    )
    names = {board.network for board in known}
    assert all(train and {board.network for board in train} <= names for train in Spy.learned)
    with pytest.raises(AssertionError, match="both learned from and judged"):
        list(predict_boards(known, {"spy": Spy}, "finetuned", known=known))


def test_rows_by_hand():
    one = board("n", "mlp", "digits")
    loss = np.arange(8.0)
    metric = np.array([90.0, 95, 80, 70, 60, 50, 40, 30])
    one = dataclasses.replace(one, loss={m: loss for m in MOMENTS}, judged_loss={m: loss for m in MOMENTS},
                              judged_metric={m: metric for m in MOMENTS})  # fmt: skip
    rows = {row.predictor: row for row in judge_formulas(one, "finetuned")}
    assert rows["loss_refitted"].spearman == pytest.approx(1)
    assert rows["loss_refitted"].kendall == pytest.approx(1)
    assert rows["loss_refitted"].zero_shot == "measured"
    # The favourite, with the least loss, has 90; the best plan has 95.
    assert rows["loss_refitted"].regret == pytest.approx(5)
    assert {"fisher", "fisher/normalised", "refit_residual", "chance", "loss_finetuned"} <= set(rows)
    assert "loss_finetuned" not in {row.predictor for row in judge_formulas(one, "refitted")}
    assert formulas(one)["fisher/normalised"] == pytest.approx(1 - one.summary.values[:, :, 4].mean(axis=1))


def test_criteria_of_units_order_plans_by_their_sums():
    units = {"group": np.array(["a", "a", "b"]), "feature_apoz_raw": signed_log(np.array([-1.0, -3.0, 0.5])),
             "score_ziplm": np.array([1.0, 3.0, 8.0])}  # fmt: skip
    masks = np.array([[1, 0, 0], [0, 1, 1]], dtype=bool)
    packed = np.array([np.packbits(mask).tobytes().hex() for mask in masks])
    np.testing.assert_array_equal(unpack_masks(packed, 3), masks)
    found = unit_formulas(units, masks)
    assert found["apoz"] == pytest.approx([-1.0, -2.5])
    assert found["ziplm"] == pytest.approx([1.0, 11.0])
    # A quarter of one of two groups; three quarters of it and all of the other.
    assert found["ziplm/normalised"] == pytest.approx([0.125, 0.875])
    assert "bn_scale" not in found
    alone = {
        "damage_at_once": np.array([1.0, -5.0, 2.0]),
        "damage_repaired": np.array([np.nan, 1.0, 1.0]),
        "depth": masks,
    }
    sums = measured_sums(alone, masks)
    assert sums["damage_at_once/sum"] == pytest.approx([1, 2])
    assert sums["damage_repaired/sum"] == pytest.approx([0, 2])
    assert len(sums) == 2
    one = board("n", "mlp", "digits")
    truth = one.judged_loss["finetuned"]
    rows = judge_formulas(one, "finetuned", others={"apoz": truth, "damage_at_once/sum": truth})
    assert {row.predictor: row.zero_shot for row in rows}["damage_at_once/sum"] == "measured"
    assert {row.predictor: row.spearman for row in rows}["apoz"] == pytest.approx(1)


def test_the_summary_tells_the_worst_family():
    rows = [Row("finetuned", "plans", family, "t", f"{family}{i}", "p", "", value, value, regret)
            for family, value, regret in (("a", 0.9, 0.1), ("b", 0.3, 2.0)) for i in range(3)]  # fmt: skip
    assert tuple(field.name for field in dataclasses.fields(Row)) == COLUMNS
    (line,) = summarize(rows)
    assert line["spearman_worst_family"] == pytest.approx(0.3)
    assert line["worst_family"] == "b"
    assert line["spearman_mean_of_families"] == pytest.approx(0.6)
    assert line["regret_worst_family"] == pytest.approx(2.0)
    assert line["low"] <= line["spearman_median"] <= line["high"]


def unit_bank():
    rng = np.random.default_rng(0)
    damage = np.concatenate([np.arange(10.0), 100 + np.arange(10.0)])
    units = {
        "network": np.zeros(20, dtype=np.int64),
        "unit": np.array([f"u{i}" for i in range(20)]),
        "group": np.repeat(["a", "b"], 10),
        # Right within layers, wrong across them; and the other way round.
        "feature_inner_raw": np.concatenate([50 + np.arange(10.0), np.arange(10.0)]),
        "feature_inner_relative": np.tile(np.arange(10.0), 2),
        "feature_outer_raw": np.concatenate([-np.arange(10.0), 100 - np.arange(10.0)]),
        "feature_error_refitted_log": np.arange(20.0),
        "score_ziplm": np.concatenate([np.arange(10.0), 1000 * np.arange(10.0)]),
        "score_random": np.random.default_rng(3).random(20),
        "feature_depth": np.zeros(20),
    }
    for truth in TRUTHS:
        units[f"damage_{truth}"], units[f"std_err_{truth}"] = damage, np.ones(20)
    plans = {"network": np.zeros(1, dtype=np.int64)}
    networks = {"name": np.array(["n"]), "family": np.array(["f"]), "task": np.array(["t"]), "noise": rng.random(1)}
    return LabelBank(networks, plans, {"plan": np.zeros(1, dtype=np.int64)}, units, plans, plans, {})


def test_units_are_ordered_within_layers_and_across_them():
    rows = {(row.truth, row.scope, row.predictor): row for row in judge_units(unit_bank())}
    assert rows["at_once", "within_layers", "inner"].spearman == pytest.approx(1)
    assert rows["at_once", "across_layers", "inner"].spearman < 0
    assert rows["at_once", "across_layers", "refitted_error"].spearman == pytest.approx(1)
    # Over the mean of its group, what is a thousand times larger there is no larger.
    alike = {rows["at_once", "across_layers", f"{p}/normalised"].spearman for p in ("ziplm", "inner")}
    assert len(alike) == 1
    assert rows["at_once", "across_layers", "ziplm"].spearman > min(alike)
    # Within layers the same order as without.
    assert not any(scope == "within_layers" and name.endswith("/normalised") for _, scope, name in rows)
    assert ("at_once", "across_layers", "random/normalised") not in rows
    assert rows["at_once", "within_layers", "outer"].spearman == pytest.approx(-1)
    assert rows["at_once", "across_layers", "outer"].spearman > 0.3
    assert rows["repaired", "across_layers", "damage_in_context"].zero_shot == "measured"
    assert ("at_once", "across_layers", "damage_in_context") not in rows
    assert not any(predictor == "depth" for _, _, predictor in rows)
    lines = summarize(list(rows.values()))
    assert {line["scope"] for line in lines} == {"within_layers", "across_layers"}
    assert not any("regret_mean" in line for line in lines)


def full_board(network, family, task, seed=0):
    """Of twenty plans, with all columns that a plan's matrix is made of."""
    rng, n, names = np.random.default_rng(seed), 20, (*FIXED, *NAMES[1:])
    values = rng.random((n, 2, len(names))).astype(np.float32)
    summary = PlanSummary(("a", "b"), names, values, PLAN_NAMES, rng.random((n, 4)).astype(np.float32))
    loss = {moment: rng.random(n) for moment in MOMENTS}
    one = board(network, family, task, seed)
    return dataclasses.replace(one, summary=summary, loss=loss, judged_loss=loss, judged_metric=loss)


def test_measured_plans_are_not_ordered_again():
    big = [full_board(f"{f}-{t}", f, t, i) for i, (f, t) in enumerate([("mlp", "digits"), ("conv", "text")])]
    predictions = [Prediction(b, "labeler", "family_and_task", b.loss["finetuned"]) for b in big]
    rows = judge_few_shot(predictions, "finetuned", "finetuned", measured=8)
    assert {row.zero_shot for row in rows} == {"family_and_task+8"}
    assert all(row.spearman > 0.9 for row in rows)
    assert judge_few_shot(predictions, "finetuned", "finetuned", measured=18) == []
    earlier = judge_few_shot(predictions, "finetuned", "refitted", measured=8)
    assert {row.zero_shot for row in earlier} == {"family_and_task+8 refitted"}


class Remembers(Spy):
    """Also what it is asked about."""

    asked: list[PlanSummary] = []

    def predict(self, summary, reference=None):
        Remembers.asked.append(summary)
        return summary.values[:, 0, 0].astype(np.float64), np.zeros(len(summary.values))


def test_a_labeler_goes_without_columns():
    Spy.learned, Remembers.asked = [], []
    labeler = WithoutColumns(Remembers(), INGREDIENTS["least squares"]).fit(BOARDS[:2])
    labeler.predict(BOARDS[2].summary)
    for summary in (*(board.summary for board in Spy.learned[0]), Remembers.asked[0]):
        assert summary.names == ("macs_share", "kept", "log_kept", "fisher_share")
        assert summary.plan_names == ("log_removed_fisher",)
        assert summary.values.shape[2] == 4
    np.testing.assert_array_equal(Remembers.asked[0].values, BOARDS[2].summary.values[:, :, [0, 1, 2, 4]])
    assert not re.fullmatch(INGREDIENTS["criteria"], "macs_share")
    assert re.fullmatch(INGREDIENTS["criteria"], "fisher_share")


def test_a_labeler_of_fewer_networks_learns_from_the_same_few():
    Spy.learned = []
    for _ in range(2):
        LearnedOtherwise(Remembers(), 0.25).fit(BOARDS)
    assert len(Spy.learned[0]) == 3
    assert Spy.learned[0] == Spy.learned[1]


def test_two_processes_find_what_one_finds():
    boards = [full_board(f"{f}-{t}", f, t, i) for i, (f, t) in enumerate([("mlp", "digits"), ("conv", "text")])]
    one, two = (
        list(predict_boards(boards, {"ridge": RidgePlanLabeler}, "finetuned", SPLITS[:1], workers=workers))
        for workers in (1, 2)
    )
    for a, b in zip(one, two, strict=True):
        assert (a.board.network, a.labeler, a.split) == (b.board.network, b.labeler, b.split)
        np.testing.assert_array_equal(a.score, b.score)


def test_choices_are_judged_by_what_they_do_and_configurations_by_their_sums():
    bank = unit_bank()
    choices = {
        "network": np.zeros(4, dtype=np.int64), "layer": np.array(["a", "a", "b", "b"]),
        "choice": np.array(["2bit", "4bit"] * 2), "bits": np.array([2, 4] * 2), "density": np.ones(4),
        "weights": np.array([10, 10, 30, 30]), "weight_error": np.array([1.0, 2.0, 3.0, 4.0]),
        "fisher_error": np.array([4.0, 1.0, 3.0, 2.0]), "damage": np.array([0.4, 0.1, 0.3, -0.2]),
    }  # fmt: skip
    configs = {
        "network": np.zeros(4, dtype=np.int64),
        "choices": np.array(["2bit 2bit", "2bit 4bit", "4bit 2bit", "4bit 4bit"]),
        # As the sums of 0.7, 0.4, 0.4 and 0.1 order them, and the errors of weights the other way round.
        "damage_test": np.array([3.0, 2.0, 2.0, 1.0]),
    }
    rows = judge_choices(dataclasses.replace(bank, choices=choices, configs=configs))
    found = {(row.scope, row.predictor): row.spearman for row in rows}
    assert found["choices", "fisher_error"] == pytest.approx(0.8)
    assert found["configs", "damage_alone"] == pytest.approx(1.0)
    assert found["configs", "weight_error"] == pytest.approx(-1.0, abs=0.06)
    assert {row.zero_shot for row in rows if row.predictor == "damage_alone"} == {"measured"}


def choice_bank():
    """Four networks of two layers and three choices, whose error says all; of configurations the sum is the truth."""
    networks, choices, configs = [], [], []
    for number, (family, task) in enumerate((f, t) for f in ("mlp", "conv") for t in ("digits", "text")):
        rng = np.random.default_rng(number)
        error = rng.random(6)
        damage = 10.0**number * error**4
        picks = np.array([(a, b) for a in range(3) for b in range(3)])
        networks.append((f"{family}-{task}", family, task))
        choices.append({
            "network": np.full(6, number), "layer": np.repeat(["a", "b"], 3), "choice": np.tile(["x", "y", "z"], 2),
            "bits": np.tile([2, 4, 8], 2), "density": np.ones(6), "weights": np.full(6, 10), "fisher_error": error,
            "weight_error": rng.random(6), "damage": damage,
        })  # fmt: skip
        configs.append({
            "network": np.full(9, number), "choices": np.array([f"{'xyz'[a]} {'xyz'[b]}" for a, b in picks]),
            "damage_test": damage[picks[:, 0]] + damage[3 + picks[:, 1]],
        })  # fmt: skip
    name, family, task = map(np.array, zip(*networks, strict=True))
    tables = [
        {key: np.concatenate([table[key] for table in found]) for key in found[0]} for found in (choices, configs)
    ]
    none = {"network": np.zeros(0, dtype=np.int64)}
    return LabelBank({"name": name, "family": family, "task": task}, none, {"plan": none["network"]}, none, *tables, {})


class KnowsErrors:
    """Orders choices by their Fisher error."""

    name = "knows_errors"

    def fit(self, boards, moment):
        self.seen, self.column = {board.network for board in boards}, boards[0].names.index("fisher_error")
        return self

    def predict(self, board):
        assert board.network not in self.seen
        return board.values[:, self.column]


def test_labelers_order_choices_and_add_up_what_is_typical_at_their_place():
    rows = judge_choice_labelers(choice_bank(), {"knows": KnowsErrors})
    # The formulas are mapped alike, on configurations.
    assert {row.predictor for row in rows} == {"knows", "fisher_error/typical", "weight_error/typical"}
    assert len([row for row in rows if row.predictor == "knows"]) == 4 * len(SPLITS) * 2
    orders = {(row.network, row.zero_shot, row.predictor): row.spearman for row in rows if row.scope == "configs"}
    assert all(value == orders[network, split, "knows"] for (network, split, name), value in orders.items()
               if name == "fisher_error/typical")  # fmt: skip
    rows = [row for row in rows if row.predictor == "knows"]
    assert {row.zero_shot for row in rows} == set(SPLITS)
    assert all(row.spearman == pytest.approx(1) for row in rows if row.scope == "choices")
    # Networks lose other parts of their mean at the same place.
    assert all(0.7 < row.spearman < 1 + 1e-9 for row in rows if row.scope == "configs")
    learned, judged = choice_boards_of(choice_bank())[:2]
    (score,) = predict_choices([learned], [dataclasses.replace(judged, damage={})], {"knows": KnowsErrors})["knows"]
    shares = np.sort(learned.damage["stored"]) / learned.damage["stored"].mean()
    places = np.argsort(np.argsort(judged.values[:, judged.names.index("fisher_error")]))
    np.testing.assert_allclose(score, shares[places], rtol=0.1, atol=0.03)


def test_networks_without_damages_of_choices_are_left_out():
    bank = choice_bank()
    bank.choices["damage"][7] = np.nan
    assert [board.network for board in choice_boards_of(bank)] == ["mlp-digits", "conv-digits", "conv-text"]
    rows = judge_choice_labelers(bank, {"knows": KnowsErrors}, SPLITS[1:])
    assert all(row.spearman == pytest.approx(1) for row in rows if row.scope == "choices")
    none = dataclasses.replace(bank, choices={name: column[:0] for name, column in bank.choices.items()})
    with pytest.raises(CompressError, match="at least two of each"):
        judge_choice_labelers(none, {"knows": KnowsErrors})


class Knows:
    """A unit labeler that reads the damage off a feature."""

    name = "knows"

    def fit(self, boards, moment):
        self.seen = {board.network for board in boards}
        return self

    def predict(self, board):
        assert board.network not in self.seen
        return board.values[:, 0]


@pytest.mark.parametrize("scope", SCOPES)
def test_units_are_ordered_by_labelers_that_never_saw_them(scope):
    damage, group = np.arange(20.0), np.repeat([0, 1], 10)
    boards = [UnitBoard(f"{f}-{t}", f, t, ("x",), damage[:, None], group, {"at_once": damage}, scope)
              for f in ("mlp", "conv") for t in ("digits", "text")]  # fmt: skip
    rows = judge_unit_labelers(boards, {"knows": Knows}, ["at_once"])
    assert sorted(row.network for row in rows) == sorted(board.network for board in boards for _ in SPLITS)
    assert all(row.spearman == pytest.approx(1) and row.scope == scope for row in rows)


def test_a_query_is_a_layer_or_the_network():
    bank = unit_bank()
    within, across = (unit_boards_of(bank, ["at_once"], scope)[0] for scope in SCOPES)
    assert [len(rows) for rows in within.queries()] == [10, 10]
    assert [len(rows) for rows in across.queries()] == [20]
    np.testing.assert_array_equal(within.target("at_once")[:10], within.target("at_once")[10:])
    assert across.target("at_once")[:10].max() < across.target("at_once")[10:].min()
    # Of layers with few units, only all together are ordered.
    bank.units["group"] = np.repeat(["a", "b", "c", "d"], 5)
    assert unit_boards_of(bank, ["at_once"], WITHIN_LAYERS) == []
    assert len(unit_boards_of(bank, ["at_once"], ACROSS_LAYERS)[0].group) == 20


def test_variants_are_judged_beside_who_made_them():
    boards = [board(f"{f}-{t}", f, t, i) for i, (f, t) in enumerate([("mlp", "digits"), ("conv", "text")])]
    found = predict_boards(boards, {"spy": Spy}, "finetuned", SPLITS[:1], variants=lambda name, it: [(f"{name}!", it)])
    assert [p.labeler for p in found] == ["spy", "spy!"] * 2
