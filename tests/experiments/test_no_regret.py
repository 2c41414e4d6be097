"""Boards on which plans are compared: who is behind by how much, what a labeler may have seen, resuming."""

import csv
import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
import torch

from autolabel.label_bank import LabelBank
from autolabel.plan_board import boards_of
from autolabel.plan_oracle import MOMENTS, PlanOracle
from autolabel.plan_race import PlanRace
from autolabel.pretrained import PRETRAINED, load_competence, load_plan_labeler
from compress.errors import ArtifactError, CompressError
from compress.files import read_json
from compress.task import ClassificationTask
from experiments import board_networks, no_regret, plan_damages
from experiments.bank_building import BankSettings, build_bank
from experiments.board_runner import BoardRunner
from experiments.boards import BoardSettings, board_network, trained_boards, zoo_boards
from experiments.config import ConfigError
from experiments.data import load_digits
from experiments.figure_style import figure_style, render_file_svg
from experiments.formatted_boards import FormattedBoardRunner
from experiments.jobs.no_regret import NoRegretJob
from experiments.no_regret import fit_for, run_board
from experiments.plan_damages import MEASURED, DamageRow, judge_boards
from experiments.raw_table import read_raw
from experiments.regret import compare_pair, is_derived, summarize
from experiments.regret_page import draw_regret, read_others, read_rows, write_page
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.subject import RepairSettings
from experiments.tracker import RunInfo
from experiments.trackers.null import NullTracker
from experiments.zoo import Recipe, build_zoo

METHODS = (
    "magnitude",
    "taylor/mac",
    "random/uniform",
    "refit_loss/search",
    "refit_loss/measured",
    "refit_loss/race",
    "refit_loss/measured_race",
    "labeler/search",
    "labeler/measured",
    "labeler/race",
    "labeler/measured_race",
    "both/search",
    "both/measured",
    "both/race",
    "both/measured_race",
    "refit_loss/finals",
    "labeler/finals",
    "both/finals",
    "all/finals",
)


@pytest.fixture(scope="module", autouse=True)
def short_repairs():
    """What is tested holds after any number of steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(board_networks, "RepairSettings", functools.partial(RepairSettings, images=64, steps=8))
        yield


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    base = Recipe("mlp-digits-000", "mlp", "digits", 1, 12, 2, "relu", "none", "adamw", 0.01, 0.0, 2, 64, 0.5)
    recipes = [
        base,
        dataclasses.replace(base, name="conv1d-mnist1d-001", family="conv1d", task="mnist1d", width=4),
        dataclasses.replace(base, name="conv2d-digits-002", family="conv2d", width=4),
        dataclasses.replace(base, name="attention-mnist1d-003", family="attention", task="mnist1d", width=4),
    ]
    folder = tmp_path_factory.mktemp("zoo")
    build_zoo(folder, recipes, workers=1)
    return folder


@pytest.fixture(scope="module")
def bank(zoo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    settings = BankSettings(plans=8, fractions=(0.25,), images=64, steps=4, brief_steps=2, batch_size=32,
                            context_masks=2, repaired_masks=4, trained_masks=0, bits=(4,), densities=(),
                            configs=1)  # fmt: skip
    build_bank(folder, zoo, settings, workers=1)
    return folder / "label_bank.npz"


def settings_of(zoo, bank):
    return BoardSettings(str(zoo), bank and str(bank), "labeler/ridge", METHODS, PlanRace((1, 2)), 2, 1, 3)


def test_a_labeler_saw_nothing_like_its_board(zoo, bank, tmp_path, monkeypatch):
    seen = []

    class Recorder:
        def fit(self, boards, moment):
            # What it does not learn, it does not see either.
            assert all(list(board.loss) == [moment] for board in boards)
            seen.append([moment, *sorted(board.network for board in boards)])
            return self

        def save(self, path):
            assert (path / "competence.json").exists()
            (path / "plan_labeler.json").write_text("{}")

    monkeypatch.setitem(no_regret.LABELERS, "labeler/ridge", Recorder)
    boards = zoo_boards(zoo, 1, [0.5])
    names = ["attention-mnist1d-003", "conv1d-mnist1d-001", "conv2d-digits-002", "mlp-digits-000"]
    assert [board.name for board in boards] == [f"{name}@0.5" for name in names]
    for board in boards:
        fit_for(board, settings_of(zoo, bank), tmp_path)
        fit_for(board, settings_of(zoo, bank), tmp_path)
    fit_for(boards[0], dataclasses.replace(settings_of(zoo, bank), truth="refitted"), tmp_path)
    assert [found[1:] for found in seen] == [names[2:], names[2:], names[:2], names[:2], names[2:]]
    assert [found[0] for found in seen] == ["finetuned"] * 4 + ["refitted"]
    assert {board.network for board in boards_of(LabelBank.load(bank), MOMENTS)} == set(names)
    # A network of no zoo: tasks of the same data are left out, as those of MNIST are for LeNet-5.
    lenet5 = no_regret.BOARD_NETWORKS["lenet5"]
    assert lenet5.shares_data_with == ("small_mnist",)
    monkeypatch.setitem(no_regret.BOARD_NETWORKS, "lenet5", dataclasses.replace(lenet5, shares_data_with=("digits",)))
    (board,) = trained_boards(("lenet5",), (0.5,))
    fit_for(board, settings_of(zoo, bank), tmp_path)
    assert seen[-1][1:] == names[:2]


def test_every_method_has_a_row_and_nothing_is_done_twice(zoo, bank, tmp_path, monkeypatch):
    settings = settings_of(zoo, bank)
    board = zoo_boards(zoo, 1, [0.5])[-1]
    rows = run_board(board, 1, settings, str(tmp_path))
    assert [row["method"] for row in rows] == ["dense", *METHODS]
    cost = {row["method"]: row["label_cost_forward_macs"] for row in rows}
    assert cost["magnitude"] == cost["random/uniform"] == cost["dense"] == 0
    assert 0 < cost["taylor/mac"] < cost["labeler/search"] < cost["labeler/race"]
    assert cost["refit_loss/search"] == cost["labeler/search"] < cost["refit_loss/race"]
    # Finals pay for the trainings that only they need.
    assert cost["labeler/race"] < cost["labeler/finals"] < cost["all/finals"]
    assert cost["refit_loss/race"] < cost["refit_loss/finals"]
    assert all(0 <= row["metric"] <= 100 for row in rows)
    # Of both searches one plan is taken, which costs two repairs.
    metric = {row["method"]: row["metric"] for row in rows}
    assert metric["both/search"] in (metric["labeler/search"], metric["refit_loss/search"])
    assert cost["labeler/search"] < cost["both/search"] < cost["both/race"]
    # Who measures pays for it, and both measure twice.
    assert cost["labeler/search"] < cost["labeler/measured"] < cost["both/measured"]
    # Its race is paid beside what was measured.
    assert cost["labeler/measured"] < cost["labeler/measured_race"] < cost["both/measured_race"]
    assert metric["both/measured"] in (metric["labeler/measured"], metric["refit_loss/measured"])
    (competence,) = {row["competence"] for row in rows}
    assert competence > 0
    assert {row["seed"] for row in rows} == {1}
    # A kill loses the training in hand alone.
    measured, measure = [], PlanOracle.measure

    def dies_at_the_third(oracle, bench, mask, *arguments, **settings):
        if oracle.moments == ("finetuned",):
            if len(measured) == 2:
                raise KeyboardInterrupt
            measured.append(mask.tobytes())
        return measure(oracle, bench, mask, *arguments, **settings)

    monkeypatch.setattr(PlanOracle, "measure", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_board(board, 1, settings, str(tmp_path / "killed"))
    # Or, before that, the repair in hand.
    repaired = []

    def dies_at_the_third_repair(oracle, bench, mask, *arguments, **settings):
        if oracle.moments == ("refitted",):
            repaired.append(mask.tobytes())
            if len(repaired) == 3:
                raise KeyboardInterrupt
        return measure(oracle, bench, mask, *arguments, **settings)

    monkeypatch.setattr(PlanOracle, "measure", dies_at_the_third_repair)
    other = dataclasses.replace(board, fraction=0.6)
    with pytest.raises(KeyboardInterrupt):
        run_board(other, 1, settings, str(tmp_path / "early"))
    run_board(other, 1, settings, str(tmp_path / "early"))
    assert len(repaired) > 3
    assert repaired[2] == repaired[3]
    assert len(set(repaired)) == len(repaired) - 1
    monkeypatch.setattr(PlanOracle, "measure", lambda oracle, bench, mask, *a, **k: (
        measured.append(mask.tobytes()), measure(oracle, bench, mask, *a, **k))[1])  # fmt: skip
    monkeypatch.setattr(PlanRace, "run", None)
    assert run_board(board, 1, settings, str(tmp_path / "killed")) == rows
    assert len(measured) == len(set(measured))
    assert [path.name for path in (tmp_path / "killed" / "rows").iterdir()] == [f"{board.name}_1.json"]
    monkeypatch.setattr(no_regret, "BoardRunner", None)
    assert run_board(board, 1, settings, str(tmp_path)) == rows
    with pytest.raises(TypeError):
        # Other settings are measured anew.
        run_board(board, 1, dataclasses.replace(settings, candidates=1), str(tmp_path))


def test_of_both_searches_the_plan_that_loses_less_after_its_repair_is_taken(zoo, tmp_path, monkeypatch):
    board = zoo_boards(zoo, 1, [0.5])[-1]
    settings = dataclasses.replace(
        settings_of(zoo, None), searches=3, methods=("both/search", "both/measured", "both/race", "both/measured_race")
    )
    runner = BoardRunner(board, board_network(board, settings), 0, settings, load_plan_labeler(), load_competence(),
                         tmp_path)  # fmt: skip
    plans = runner.plans()
    assert list(plans) == ["both/search", "both/measured", "both/race", "both/measured_race"]
    # Of what both measured the plan that lost less.
    names, units = list(runner._tried), len(runner.subject.structure.units)
    assert names == ["blend", "formula:refitted_loss_sum"]
    losses = {mask.tobytes(): loss for tried, _ in runner._tried.values() for loss, mask in tried}
    assert losses[plans["both/measured"][0].tobytes()] == min(losses.values())
    one = np.eye(units, dtype=bool)
    runner._tried = {names[0]: ([(1.0, one[1]), (float("nan"), one[3]), (2.0, one[2])], 5.0),
                     names[1]: ([(0.0, one[0]), (1.0, one[1])], 7.0)}  # fmt: skip
    ranked, macs = runner._measured("both")
    assert [int(mask.argmax()) for mask in ranked] == [0, 1, 2, 3]
    assert macs == runner._statistics_macs + 12.0
    # The best of them race, and a formula's plan.
    entered = []
    monkeypatch.setattr(runner, "_brief_training", lambda mask, steps: (entered.append(int(mask.argmax())) or 1.0, 1.0))
    del runner._done["both/measured_race"]
    runner._searched("both", {"formula": one[4]})
    assert set(entered) == {0, 1, 2, 4}
    # The labeler searches twice and the formula once, as in the product.
    assert sorted(runner._favourites) == [("blend", 0), ("blend", 1), ("formula:refitted_loss_sum", 0)]
    masks = [plans["both/search"][0], np.zeros(len(runner.subject.structure.units), dtype=bool)]
    # What loses nothing is better, wherever it stands.
    for two in (masks, masks[::-1]):
        best, macs = runner._best_repaired(two, 7.0)
        assert not best.any()
        assert macs > 7


def test_finals_take_the_plan_that_ends_best_on_validation_examples():
    ends = {0: (90.0, 0.3, 10.0), 1: (80.0, 0.1, 20.0), 2: (95.0, float("nan"), 40.0)}

    class Ends(BoardRunner):
        def __init__(self):
            pass

        def _trained(self, mask, name):
            return ends[int(mask.sum())]

        def _row(self, method, metric, macs):
            return method, metric, macs

    masks = [np.arange(2) < removed for removed in (0, 1, 1, 2)]
    # The training of the winner is the one that every method gets.
    assert Ends()._final("finals", masks, 5.0) == ("finals", 80.0, 5.0 + 10.0 + 40.0)
    assert Ends()._final("finals", masks[3:], 5.0) == ("finals", 95.0, 5.0)


def test_the_job_writes_its_tables(zoo, bank, tmp_path, monkeypatch):
    numbers = (0, 3, 6)
    monkeypatch.setattr(plan_damages.judge_board, "__defaults__", (numbers,))
    job = NoRegretJob(str(zoo), str(bank), ("magnitude", "labeler/search"), "labeler/ridge", 1, (), (0.5,),
                      race_steps=(1,), searches=1, workers=1)  # fmt: skip
    job.check(Config())
    with RunDir(tmp_path / "run", {"command": "x"}) as run_dir:
        metrics = job.run(Config(), run_dir, NullTracker(RunInfo("test", tmp_path)))
    assert set(metrics["no_regret"]) == {"magnitude", "labeler/search"}
    lines = (tmp_path / "run" / "no_regret.csv").read_text().splitlines()
    assert (
        lines[0] == "board,network,task,budget,method,seed,metric,higher_is_better,label_cost_forward_macs,competence"
    )
    assert len(lines) == 1 + 4 * 3
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["boards"]
    # Two methods on three boards, before and after other plans were measured.
    damages = read_raw(tmp_path / "run" / "plan_damage.csv", DamageRow)
    assert [(row.board, row.measured, row.method) for row in damages] == [
        (board["board"], number, method)
        for board in summary["boards"]
        for number in numbers
        for method in ("magnitude", "labeler/search")
    ]
    assert all(0 < row.low < row.predicted < row.high for row in damages)
    assert len({row.realised for row in damages}) > 3
    assert [line["measured"] for line in summary["plan_damage"]] == list(numbers)
    # Without seeds only damages are measured, and they are the same.
    alone = NoRegretJob(str(zoo), str(bank), ("magnitude", "labeler/search"), "labeler/ridge", 1, (), (0.5,), seeds=(),
                        race_steps=(1,), searches=1, workers=1)  # fmt: skip
    shutil.copytree(tmp_path / "run" / "damages", tmp_path / "alone" / "damages")
    with RunDir(tmp_path / "alone", {"command": "x"}) as run_dir:
        assert alone.run(Config(), run_dir, NullTracker(RunInfo("test", tmp_path))) == {"no_regret": {}}
    assert read_raw(tmp_path / "alone" / "plan_damage.csv", DamageRow) == damages
    # The rows alone, in another folder: nothing is repaired for the damages.
    shutil.copytree(tmp_path / "run" / "rows", tmp_path / "short" / "rows")
    job.damages = False
    with RunDir(tmp_path / "short", {"command": "x"}) as run_dir:
        job.run(Config(), run_dir, NullTracker(RunInfo("test", tmp_path)))
    assert (tmp_path / "short" / "no_regret.csv").read_text().splitlines() == lines
    assert not (tmp_path / "short" / "plan_damage.csv").exists()
    monkeypatch.setattr(plan_damages, "measure_losses", None)
    assert judge_boards(zoo_boards(zoo, 1, [0.5]), job.settings, tmp_path / "run", 1) == [
        DamageRow(**row) for path in sorted((tmp_path / "run" / "damages").iterdir()) for row in read_json(path)["rows"]
    ]


def test_boards_of_bytes_search_units_and_bits(zoo, bank, tmp_path):
    methods = ("random", "refit_loss/search", "fisher/bits", "refit_loss/search@4bit", "labeler/search")
    job = NoRegretJob(str(zoo), str(bank), methods, "labeler/ridge", 1, (), (0.16,), damages=False, plan_bits=(2, 4, 8),
                      workers=1)  # fmt: skip
    job.check(Config())
    board = zoo_boards(zoo, 1, [0.16])[-1]
    plans = {}

    class Recorder(FormattedBoardRunner):
        def _plan(self, name):
            plans[name] = super()._plan(name)
            structure, costs = self.subject.structure, self.subject.costs
            removed, bits, _ = plans[name]
            weight_bytes = costs.total(removed, self._formats.rows(bits))[1]
            assert weight_bytes <= self.fraction * costs.dense_weight_bytes, name
            assert len(bits) == (structure.units.kind == "layer").sum()
            return plans[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(no_regret, "FormattedBoardRunner", Recorder)
        rows = run_board(board, 1, job.settings, str(tmp_path))
    assert [row["method"] for row in rows] == ["dense", *methods]
    assert {row["budget"] for row in rows} == {"weight_bytes=0.1600"}
    assert set(plans["refit_loss/search@4bit"][1]) == {4}
    assert not plans["fisher/bits"][0].any()
    assert run_board(board, 1, job.settings, str(tmp_path)) == rows
    for wrong, told in (
        ({"methods": ("taylor/mac",)}, "Got 'taylor/mac'"),
        ({"methods": ("refit_loss/search@3bit",)}, "Got 'refit_loss/search@3bit'"),
        ({"methods": methods, "damages": True}, r"Set job\.damages=false"),
        ({"methods": methods, "bank": None}, "a labeler that knows bits"),
    ):
        own = {
            "zoo": str(zoo),
            "bank": str(bank),
            "labeler": "labeler/ridge",
            "per_family": 1,
            "damages": False,
            **wrong,
        }
        with pytest.raises(ConfigError, match=told):
            NoRegretJob(**own, plan_bits=(2, 4, 8)).check(Config())


def test_formulas_alone_need_no_labeler(zoo, tmp_path):
    methods = ("magnitude", "refit_loss/search", "refit_loss/measured")
    job = NoRegretJob(str(zoo), None, methods, per_family=1, fractions=(0.5,), searches=1, measured=4, damages=False,
                      workers=1)  # fmt: skip
    job.check(Config())
    board = zoo_boards(zoo, 1, [0.5])[-1]
    rows = run_board(board, 0, job.settings, str(tmp_path))
    assert [row["method"] for row in rows] == ["dense", *methods]
    assert {row["competence"] for row in rows} == {None}
    assert not (tmp_path / "labelers").exists()
    with pytest.raises(ConfigError, match=r"Or job\.damages=false"):
        NoRegretJob(str(zoo), None, methods, per_family=1).check(Config())


def row(board, method, seed, metric, better=True, cost=0):
    return {"board": board, "network": board, "method": method, "seed": seed, "metric": metric,
            "higher_is_better": better, "label_cost_forward_macs": cost}  # fmt: skip


def test_ranks_and_distances_by_hand():
    rows = [row("a", m, s, v) for m, values in {"x": (90, 92), "y": (90, 91), "z": (80, 81), "dense": (99, 99)}.items()
            for s, v in enumerate(values)]  # fmt: skip
    rows += [row("b", m, s, str(v), "False", 5) for m, values in {"x": (2.0, 2.0), "y": (1.0, 1.0)}.items()
             for s, v in enumerate(values)]  # fmt: skip
    found = summarize(rows)
    first, second = found["boards"]
    assert (first["best"], first["dense"], first["rank"]) == ("x", 99, {"x": 1, "y": 2, "z": 3})
    assert first["spread"] == pytest.approx(np.sqrt(2))
    assert first["behind"] == pytest.approx({"x": 0, "y": 0.5, "z": 10.5})
    assert second["rank"] == {"x": 2, "y": 1}
    overall = found["overall"]
    assert overall["y"]["within_one_deviation"] == 1.0
    assert overall["x"]["within_one_deviation"] == 0.5
    assert overall["x"]["mean_rank"] == overall["y"]["mean_rank"] == 1.5
    assert overall["z"]["boards"] == 1
    assert overall["x"]["worst_behind"] == 1.0
    assert overall["y"]["label_cost_forward_macs"] == 2.5
    assert overall["y"]["mean_rank_interval"] == (1.0, 2.0)
    assert "dense" not in overall
    pair = compare_pair(found["boards"], "x", "y")
    assert (pair["boards"], pair["ahead"], pair["alike"]) == (2, 1, 0)
    assert (pair["points"], pair["points_interval"]) == (-0.25, (-1.0, 0.5))
    assert pair["ranks"] == 0
    # Many seeds of one board weigh no more than one: costs are of boards.
    more = [{**row("a", "y", s, 90), "label_cost_forward_macs": 8} for s in range(2, 9)]
    assert summarize([*rows, *more])["overall"]["y"]["label_cost_forward_macs"] == pytest.approx((56 / 9 + 5) / 2)
    # One seed says nothing of a spread.
    rows += [row("c", m, 0, v) for m, v in {"x": 5, "y": 4}.items()]
    again = summarize(rows)
    page = write_page([*rows, row("b", "dense", 0, 1, "False"), row("c", "dense", 0, 9)], "a command")
    assert (again["boards"][2]["seeds"], again["boards"][2]["spread"]) == (1, None)
    assert again["overall"]["x"]["within_one_deviation"] == 0.5
    assert summarize(rows[-2:])["overall"]["y"]["within_one_deviation"] is None
    assert "3 boards, 1 to 2 seeds" in page
    assert "5.00 x (one seed)" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zoo": "nowhere"}, "job.zoo: nowhere is no zoo"),
        ({"bank": "nowhere"}, "job.bank: there is no nowhere"),
        ({"labeler": "unknown"}, "job.labeler must be out of"),
        ({"truth": "later"}, "job.truth must be out of"),
        ({"methods": ("best",)}, "no scores are called 'best'"),
        ({"methods": ("taylor/best",)}, "must end in one of"),
        ({"methods": ("labeler/finals",)}, "job.methods: 'labeler/finals' trains the last round of 'labeler/race'"),
        ({"measured": 1}, "job.measured must be at least 2"),
        ({"trained": ("vgg",)}, "No board network is called 'vgg'"),
        ({"bank": None, "methods": ("labeler/search",)}, "job.labeler must be 'labeler/blend', as it ships"),
        (
            {"bank": None, "labeler": "labeler/blend", "truth": "refitted", "methods": ("labeler/search",)},
            "job.truth must be 'finetuned'",
        ),
        ({"bank": None, "labeler": "labeler/blend", "methods": ("both/race",)}, "job.per_family must be 0"),
        (
            {
                "bank": None,
                "labeler": "labeler/blend",
                "per_family": 0,
                "trained": ("resnet20", "lenet5"),
                "methods": ("labeler/measured",),
            },
            "saw data of 'lenet5'",
        ),
    ],
)
def test_a_job_that_cannot_run_is_refused_at_once(zoo, bank, changes, message):
    with pytest.raises(ConfigError, match=message):
        NoRegretJob(**{"zoo": str(zoo), "bank": str(bank), "methods": ("magnitude",), **changes}).check(Config())


def test_the_page_tells_methods_by_rank_and_every_board(tmp_path):
    rows = [
        row("a", m, s, v)
        for m, values in {
            "labeler/race": (92, 93),
            "taylor": (90, 91),
            "dense": (99, 99),
            "labeler/finals": (94, 95),
        }.items()
        for s, v in enumerate(values)
    ]
    page = write_page(rows, "`command`")
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines] == [
        "| goal", "| boards within one standard deviation of the best in hindsight", "| mean rank",
        "| method", "| labeler/race", "| labeler/finals", "| taylor", "| board", "| a",
    ]  # fmt: skip
    assert "| >= 80 % | 100 % (met) | 100 % (met) |" in page
    assert "| taylor | 2.00 (2.0 to 2.0) | 0 % | 0 % | 2.00 | 2.00 | 0 |" in page
    # What takes a plan of another method is nobody's rival.
    assert "| labeler/finals | 1.00 (1.0 to 1.0) | 100 % | 100 % | -2.00 | -2.00 | 0 |" in page
    assert "beside" not in page
    assert "| a | 99.00 | 92.50 labeler/race (0.71) | 92.50 (rank 1) | 94.50 (rank 1) |" in page
    # How far the networks lie, and who is ahead within the competence and outside of it.
    far = [{**line, "competence": 0.5} for line in rows]
    far += [row("b", m, 0, v) | {"competence": 2} for m, v in {"labeler/race": 80, "refit_loss/race": 81}.items()]
    far += [row("a", "refit_loss/race", s, 92) | {"competence": "0.5"} for s in (0, 1)]
    page = write_page([*far, row("b", "dense", 0, 90)], "`command`", rows)
    assert "| 0.50 |" in page
    assert "| 2.00 (outside) |" in page
    both, worse = "0.00 (0.00 to 0.00)", "-1.00 (-1.00 to -1.00) | -1.00 (-1.00 to -1.00)"
    assert "| labeler/race | refit_loss/race | all | -0.25 (-1.00 to 0.50) | " in page
    assert f"| | | within | 0.50 (0.50 to 0.50) | {both.replace('0.00', '1.00')} | 1 of 1 | 0 |" in page
    assert f"| | | outside | {worse} | 0 of 1 | 0 |" in page
    # Trained networks by themselves, with all methods and each board.
    own = page[page.index("## Trained networks") :]
    assert page.index("## Boards") < page.index("## Trained networks")
    assert "| taylor | 2.00 (2.0 to 2.0) | 0 % | 0 % | 2.00 | 2.00 | 0 |" in own
    assert "| a | 99.00 | 92.50 labeler/race (0.71) | 92.50 (rank 1) | 94.50 (rank 1) |" in own
    # Each by itself, with the methods that it has.
    two = write_page(rows, "`command`", [*rows, row("b", "dense", 0, 99), row("b", "fisher", 0, 98)])
    assert two.index("### a, 2 seeds") < two.index("### b, 1 seed\n") < two.index("| fisher | 1.00")
    # What lacks a seed of its board is left out.
    some = write_page(rows, "`command`", [*rows, row("a", "fisher", 0, 99)])
    assert some == write_page(rows, "`command`", rows)
    assert "fisher" not in some
    # Searches that measure beside those that do not.
    ends = {"dense": 99, "labeler/search": 90, "labeler/measured": 92, "labeler/measured_race": 93}
    measured = [row("c", name, 0, value) for name, value in ends.items()]
    own = write_page(rows, "`command`", (), {"A title:": measured})
    own = own[own.index("## Searches that measure plans") :]
    assert "\nA title:\n" in own
    assert "| labeler/measured_race | 1.00 (1.0 to 1.0) | 100 % | - | 0.00 | 0.00 | 0 |" in own
    assert "| labeler/measured | labeler/search | all | 2.00 (2.00 to 2.00) | 1.00 (1.00 to 1.00) | 1 of 1 | 0 |" in own
    assert "| labeler/measured_race | labeler/measured | all | 1.00 (1.00 to 1.00)" in own
    page = write_page(rows, "`command`")
    with figure_style():
        svg = render_file_svg(draw_regret(rows)).decode()
    assert "labeler/race" in svg
    with (tmp_path / "raw.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, no_regret.COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({"network": "n", "task": "t", "budget": "b", **line} for line in rows)
    assert write_page(read_rows(tmp_path / "raw.csv"), "`command`") == page
    with pytest.raises(ArtifactError, match="Cannot read"):
        read_rows(tmp_path / "none.csv")
    (tmp_path / "raw.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ArtifactError, match="not a table of boards"):
        read_rows(tmp_path / "raw.csv")


def test_the_labeler_that_ships_is_judged_without_zoo_and_bank(tmp_path, monkeypatch):
    job = NoRegretJob(None, None, METHODS, "labeler/blend", 0, ("resnet20", "minilm"), trained_fractions=(0.5,))
    job.check(Config())
    resnet20, minilm = trained_boards(job.trained, job.trained_fractions)
    assert fit_for(resnet20, job.settings, tmp_path) == fit_for(minilm, job.settings, tmp_path) == PRETRAINED
    (lenet5,) = trained_boards(("lenet5",), (0.5,))
    with pytest.raises(CompressError, match="saw networks like lenet5's"):
        fit_for(lenet5, job.settings, tmp_path)
    # A network of our own, so that a board takes seconds.
    base = no_regret.BOARD_NETWORKS["lenet5"]
    few = dataclasses.replace(base, load=lambda folder: _digits(), repair=RepairSettings(64, 4, 2, 32), task="digits",
                              shares_data_with=())  # fmt: skip
    monkeypatch.setitem(no_regret.BOARD_NETWORKS, "own", few)
    settings = dataclasses.replace(job.settings, race=PlanRace((1, 2)), candidates=1, searches=1)
    (board,) = trained_boards(("own",), (0.5,))
    rows = run_board(board, 0, settings, str(tmp_path))
    assert [row["method"] for row in rows] == ["dense", *METHODS]
    damages = judge_boards([board], settings, tmp_path, 1)
    assert len(damages) == len(MEASURED) * sum(
        not is_derived(name) and not name.endswith(("/measured", "race")) for name in METHODS
    )


def _digits():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.ReLU(), torch.nn.Linear(12, 10))
    return model.eval(), load_digits(), ClassificationTask()


def test_the_page_tells_which_labeler_led_a_search_and_what_it_learned(tmp_path):
    runs = {
        "a": ("refitted", {"labeler/search": 91}),
        "b": ("finetuned", {"labeler/search": 93, "refit_loss/search": 92}),
    }
    for name, (truth, metrics) in runs.items():
        rows = [row("n@0.2", method, 0, metric) for method, metric in metrics.items()]
        with (tmp_path / f"search_{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        made = {"job": {"labeler": f"labeler/{name}", "truth": truth}, "command": "c"}
        (tmp_path / f"made_search_{name}.json").write_text(json.dumps(made))
    others = read_others(tmp_path)
    page = write_page([row("n@0.2", m, 0, 90) for m in ("taylor", "dense")], "`command`", others=others)
    own = page[page.index("## Searches led by other labelers") :]
    assert "1 boards, 1 seeds" in own
    beside = [line for line in own.splitlines() if "| refit_loss/search | all |" in line]
    assert beside[0].startswith("| labeler/a/search, refitted | refit_loss/search | all | -1.00 ")
    assert beside[1].startswith("| labeler/b/search, finetuned | refit_loss/search | all | 1.00 ")
