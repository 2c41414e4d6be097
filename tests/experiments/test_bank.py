"""The label bank, end to end on two small networks of the zoo: what is measured, what is not measured twice."""

import dataclasses
import hashlib
import shutil

import numpy as np
import pytest

from autolabel.choice_bench import DENSE, ChoiceBench
from autolabel.label_bank import LabelBank, merge_banks
from autolabel.plan_board import boards_of
from autolabel.plan_labelers import GBDTPlanLabeler, RidgePlanLabeler
from autolabel.plan_oracle import MOMENTS
from autolabel.pretrained import load_plan_damage, load_plan_labeler
from compress.errors import ArtifactError, CompressError
from compress.files import read_json, write_json
from compress.layer_choice import LayerChoice
from compress.quantizers.mse import MseQuantizer
from experiments import bank_building, bank_card
from experiments.ablations import ablated_labelers
from experiments.bank_building import BankSettings, build_bank
from experiments.choice_predictors import STORED_REPAIRED, judge_choices
from experiments.config import ConfigError
from experiments.jobs.bank import BankJob
from experiments.jobs.pretrain import PretrainJob
from experiments.jobs.who_predicts import WhoPredictsJob
from experiments.raw_table import read_raw
from experiments.run_dir import RunDir
from experiments.seeding import derive_seed
from experiments.settings import Config
from experiments.subject import RepairSettings, Subject
from experiments.tracker import RunInfo
from experiments.trackers.null import NullTracker
from experiments.unit_predictors import TRUTHS, judge_units
from experiments.who_predicts import Row, judge_formulas, judge_predictions, predict_boards
from experiments.zoo import Recipe, build_zoo, load_network

SETTINGS = BankSettings(plans=6, fractions=(0.3,), images=64, steps=4, brief_steps=2, batch_size=32, context_masks=2,
                        repaired_masks=4, trained_masks=4, trained_steps=1, bits=(2, 4), densities=(0.5,),
                        configs=5)  # fmt: skip


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    base = Recipe("mlp-digits-000", "mlp", "digits", 1, 16, 2, "relu", "none", "adamw", 0.01, 0.0, 12, 64, 0.5)
    folder = tmp_path_factory.mktemp("zoo")
    build_zoo(folder, [base, dataclasses.replace(base, name="conv2d-digits-001", family="conv2d", width=8)], workers=1)
    return folder


@pytest.fixture(scope="module")
def built(zoo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    return folder, build_bank(folder, zoo, SETTINGS, workers=1)


def test_plans_may_store_layers_in_few_bits(zoo, tmp_path):
    settings = dataclasses.replace(
        SETTINGS, fractions=(0.12,), context_masks=0, repaired_masks=0, trained_masks=0, plan_bits=(2, 4, 8)
    )
    bank = build_bank(tmp_path, zoo, settings, workers=1, chosen=slice(1))
    plans = bank.plans
    assert np.isfinite(plans["loss_finetuned_test"]).all()
    assert set(plans["size"]) == {"weight_bytes"}
    assert [len(text.split()) for text in plans["bits"].tolist()] == [3] * 6
    # Float bytes of what stays are above the size, which counts bits.
    assert (plans["weight_bytes"] > plans["fraction"]).all()
    assert not {"damage_in_context", "damage_repaired", "damage_trained"} & set(bank.units)
    assert {row.truth for row in judge_units(bank)} == {"at_once"}
    (board,) = boards_of(bank, MOMENTS)
    rows = judge_formulas(board, "finetuned")
    assert {"fisher_error", "refit_residual/loss+fisher_error"} <= {row.predictor for row in rows}
    assert {row.scope for row in rows} == {"formatted_plans"}
    assert "labeler/ridge without bits" in ablated_labelers(board.summary)
    # Its labeler lies beside the one of plans that only remove.
    other = dataclasses.replace(bank, networks={**bank.networks, "name": np.array(["other"])})
    merge_banks([bank, other], bank.about).save(tmp_path / "two.npz")
    with RunDir(tmp_path / "run", {"command": "x"}) as run_dir:
        job = PretrainJob(str(tmp_path / "two.npz"), "labeler/ridge")
        job.run(Config(), run_dir, NullTracker(RunInfo("test", tmp_path)))
    labeler = load_plan_labeler(tmp_path / "run" / "plan_labeler", formatted=True)
    assert np.isfinite(labeler.predict(board.summary)[0]).all()
    # Of the other kind it holds none: what ships is asked.
    assert load_plan_labeler(tmp_path / "run" / "plan_labeler").name == load_plan_labeler().name == "blend"
    # Again: nothing is measured anew, and what was measured of others is refused.
    files = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "networks").iterdir()}
    build_bank(tmp_path, zoo, settings, workers=1, chosen=slice(1))
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "networks").iterdir()} == files
    with pytest.raises(ArtifactError, match="other settings"):
        build_bank(tmp_path, zoo, dataclasses.replace(settings, plan_bits=(3, 8)), workers=1, chosen=slice(1))


def test_every_network_has_its_rows(built, zoo):
    folder, bank = built
    assert bank.networks["name"].tolist() == ["mlp-digits-000", "conv2d-digits-001"]
    assert np.bincount(bank.plans["network"]).tolist() == [6, 6]
    for moment in MOMENTS:
        for part in ("validation", "test"):
            assert np.isfinite(bank.plans[f"loss_{moment}_{part}"]).all()
            assert ((bank.plans[f"metric_{moment}_{part}"] >= 0) & (bank.plans[f"metric_{moment}_{part}"] <= 100)).all()
    macs = np.stack([bank.plans[f"macs_{moment}"] for moment in MOMENTS])
    # A look at a plan costs MACs too.
    assert (macs[0] > 0).all()
    assert (np.diff(macs, axis=0) > 0).all()
    for moment in TRUTHS:
        assert np.isfinite(bank.units[f"damage_{moment}"]).all()
    assert len(bank.units["network"]) == bank.networks["n_units"].sum()
    sizes = np.where(bank.plans["size"] == "macs", bank.plans["macs"], bank.plans["weight_bytes"])
    assert (sizes <= 0.5 + 1e-6).all()
    # Two bits and a density for each of three and of four layers.
    assert np.bincount(bank.choices["network"]).tolist() == [3 * n for n in (3, 4)]
    assert set(bank.choices["choice"].tolist()) == {"2bit", "4bit", "32bit_d0.5"}
    assert (bank.choices["weight_error"] > 0).all()
    assert np.isfinite(bank.choices["damage_repaired"]).all()
    assert (bank.choices["macs_repaired"] > bank.choices["macs"]).all()
    assert [len(text.split()) for text in bank.configs["choices"]] == [3] * 5 + [4] * 5
    assert np.isfinite(bank.configs["damage_test"]).all()
    assert set(bank.networks) >= {"data_sha256", "seed", "code", "libraries"}
    # One data set dealt in one way; another way has another hash.
    assert len({*bank.networks["data_sha256"].tolist()}) == 1
    data = load_network(zoo, "mlp-digits-000")[1]
    assert bank.networks["data_sha256"][0] == bank_building._hash_splits(data)
    dealt = dataclasses.replace(data, label=data.validation, validation=data.label)
    assert bank.networks["data_sha256"][0] != bank_building._hash_splits(dealt)
    read = LabelBank.load(folder / "label_bank.npz")
    np.testing.assert_array_equal(read.plans["loss_finetuned_test"], bank.plans["loss_finetuned_test"])
    assert read.about["settings"]["steps"] == 4
    assert read.about["code"]


def test_the_data_card_tells_what_the_file_holds(built, caplog, monkeypatch):
    folder, bank = built
    card, file = read_json(folder / "card.json"), folder / "label_bank.npz"
    assert card["file_bytes"] == file.stat().st_size
    assert card["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert card["networks"] == {"conv2d/digits": 1, "mlp/digits": 1}
    assert card["rows"]["plans"] == 12
    assert card["rows"]["units"] == len(bank.units["unit"])
    assert card["forward_macs"]["plans/macs_finetuned"] == pytest.approx(bank.plans["macs_finetuned"].sum())
    assert card["forward_macs"]["units/macs_repaired"] > 0
    assert "plans/macs" not in card["forward_macs"]
    assert card["about"]["settings"]["plans"] == 6
    assert "hard to publish" not in caplog.text
    monkeypatch.setattr(bank_card, "_LARGEST_BYTES", 1000)
    bank_card.data_card(bank, file)
    assert "hard to publish" in caplog.text


def test_labels_of_layers_stand_where_they_belong(built, zoo):
    """Each damage is the one of its layer stored in its choice, and a configuration's that of all of its layers."""
    _, bank = built
    model, data, _ = load_network(zoo, "conv2d-digits-001")
    repair = RepairSettings(64, 4, 2, 32, finetune=SETTINGS.finetune)
    subject = Subject(model, data, repair, derive_seed("conv2d-digits-001", 0) % 2**31)
    offered = [LayerChoice(2), LayerChoice(4), LayerChoice(32, density=0.5)]
    bench = ChoiceBench(subject.structure, subject.task, MseQuantizer(), offered)
    rows, configs = bank.rows("choices", 1), bank.rows("configs", 1)
    dense = bench.losses([DENSE] * len(bench.layers), subject.label)
    for i, (layer, choice) in enumerate(zip(rows["layer"].tolist(), rows["choice"].tolist(), strict=True)):
        picks = [DENSE] * len(bench.layers)
        picks[bench.layers.index(layer)] = [one.name for one in offered].index(choice)
        assert rows["damage"][i] == pytest.approx(float((bench.losses(picks, subject.label) - dense).mean()), abs=1e-5)
    picks = [[one.name for one in offered].index(name) for name in configs["choices"][0].split()]
    test = subject.bench.judged["test"]
    damage = bench.losses(picks, test).mean() - bench.losses([DENSE] * len(bench.layers), test).mean()
    assert configs["damage_test"][0] == pytest.approx(float(damage), abs=1e-5)


def test_what_is_labelled_is_not_labelled_again(built, zoo, monkeypatch, tmp_path):
    folder, bank = built
    calls = []
    monkeypatch.setattr(bank_building, "label_network", lambda *args: calls.append(args))
    again = build_bank(folder, zoo, SETTINGS, workers=1)
    assert not calls
    np.testing.assert_array_equal(again.plans["loss_finetuned_test"], bank.plans["loss_finetuned_test"])
    with pytest.raises(ArtifactError, match="other settings"):
        build_bank(folder, zoo, dataclasses.replace(SETTINGS, steps=5), workers=1)
    other = tmp_path / "zoo"
    shutil.copytree(zoo, other)
    row = read_json(other / "networks" / "mlp-digits-000.json")
    write_json(other / "networks" / "mlp-digits-000.json", {**row, "weights_sha256": "0" * 64})
    with pytest.raises(ArtifactError, match="another network of this name"):
        build_bank(folder, other, SETTINGS, workers=1)
    with pytest.raises(ArtifactError, match="holds no network"):
        build_bank(tmp_path / "b", tmp_path / "nothing", SETTINGS)
    with pytest.raises(ArtifactError, match="holds 2 networks, none of them from 2 to 5"):
        build_bank(tmp_path / "b", zoo, SETTINGS, chosen=slice(2, 5))


def test_other_masks_measure_units_anew_and_leave_plans(built, zoo, tmp_path, monkeypatch):
    folder, bank = built
    copy = tmp_path / "bank"
    shutil.copytree(folder, copy)
    monkeypatch.setattr(bank_building, "measure_plans", None)
    again = build_bank(copy, zoo, dataclasses.replace(SETTINGS, context_masks=8), workers=1)
    np.testing.assert_array_equal(again.plans["loss_finetuned_test"], bank.plans["loss_finetuned_test"])
    np.testing.assert_array_equal(again.units["damage_at_once"], bank.units["damage_at_once"])
    assert np.median(again.units["std_err_in_context"]) < 0.8 * np.median(bank.units["std_err_in_context"])
    assert again.about["settings"]["context_masks"] == 8
    np.testing.assert_array_equal(again.choices["damage"], bank.choices["damage"])
    monkeypatch.setattr(bank_building, "FEATURES_VERSION", -1)
    monkeypatch.setattr(bank_building, "_unit_damages", None)
    monkeypatch.setattr(bank_building, "choice_tables", None)
    newer = build_bank(copy, zoo, dataclasses.replace(SETTINGS, context_masks=8), workers=1)
    assert newer.about["features_version"] == -1
    assert set(newer.plans) == set(bank.plans)
    np.testing.assert_array_equal(newer.plans["refitted_loss_sum"], bank.plans["refitted_loss_sum"])
    # Columns that came later are made where a file lacks them, beside labels that stay.
    file = copy / "networks" / "mlp-digits-000.npz"
    old = LabelBank.load(file)
    dataclasses.replace(old, units={k: v for k, v in old.units.items() if k != "score_ziplm"}).save(file)
    mended = build_bank(copy, zoo, dataclasses.replace(SETTINGS, context_masks=8), workers=1)
    np.testing.assert_array_equal(mended.units["score_ziplm"], newer.units["score_ziplm"])
    # Labels of other examples are not carried over.
    monkeypatch.setattr(bank_building, "FEATURES_VERSION", -2)
    monkeypatch.setattr(bank_building, "_hash_splits", lambda data: "other")
    with pytest.raises(CompressError, match="was measured on other examples"):
        build_bank(copy, zoo, dataclasses.replace(SETTINGS, context_masks=8), workers=1)


def test_one_bad_network_does_not_stop_the_others(zoo, tmp_path):
    copy = tmp_path / "zoo"
    shutil.copytree(zoo, copy)
    weights = copy / "networks" / "mlp-digits-000.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"0000")
    with pytest.raises(CompressError, match=r"1 of 2 networks could not be labelled.*mlp-digits-000.*is damaged"):
        build_bank(tmp_path / "bank", copy, SETTINGS, workers=1)
    assert [path.stem for path in (tmp_path / "bank" / "networks").iterdir()] == ["conv2d-digits-001"]


def test_a_network_whose_units_are_too_few_for_plans_of_one_size_is_left_out(tmp_path, caplog):
    few = Recipe("conv2d-digits-000", "conv2d", "digits", 1, 4, 2, "relu", "none", "adamw", 0.01, 0.0, 1, 64, 0.2)
    many = dataclasses.replace(few, name="mlp-digits-001", family="mlp", width=16)
    build_zoo(tmp_path / "zoo", [few, many], workers=1)
    settings = dataclasses.replace(SETTINGS, fractions=(0.15,), context_masks=0, repaired_masks=0, trained_masks=0)
    for _ in range(2):
        caplog.clear()
        bank = build_bank(tmp_path / "bank", tmp_path / "zoo", settings, workers=1)
        assert "conv2d-digits-000 is left out: Only 0 plans" in caplog.text
        assert bank.networks["name"].tolist() == ["mlp-digits-001"]
    assert list(LabelBank.load(tmp_path / "bank" / "label_bank.npz").about["left_out"]) == ["conv2d-digits-000"]
    with pytest.raises(CompressError, match=r"No network of .* has enough plans"):
        build_bank(tmp_path / "none", tmp_path / "zoo", settings, workers=1, chosen=slice(1))


def test_its_labels_repeat(built, zoo, tmp_path):
    _, bank = built
    again = build_bank(tmp_path, zoo, SETTINGS, workers=1, chosen=slice(1))
    mine = bank.plans["network"] == 0
    np.testing.assert_array_equal(again.plans["loss_finetuned_test"], bank.plans["loss_finetuned_test"][mine])
    units = bank.units["network"] == 0
    np.testing.assert_array_equal(again.units["damage_repaired"], bank.units["damage_repaired"][units])


def test_boards_are_judged(built):
    boards = boards_of(built[1], MOMENTS)
    rows = judge_formulas(boards[0], "finetuned")
    assert {"magnitude", "fisher/normalised", "refit_residual", "loss_finetuned", "chance"} <= {
        r.predictor for r in rows
    }
    assert {row.truth for row in judge_units(built[1])} == set(TRUTHS)
    choices = judge_choices(built[1])
    assert {(row.scope, row.predictor) for row in choices} >= {("choices", "fisher_error"), ("configs", "damage_alone")}
    repaired = {(row.scope, row.predictor) for row in choices if row.truth == STORED_REPAIRED}
    assert repaired == {("choices", name) for name in ("fisher_error", "weight_error", "dropped_bits", "damage_alone")}
    # One task: nothing is left for a labeler that must not have seen it.
    with pytest.raises(CompressError, match="at least two of each"):
        judge_predictions(predict_boards(boards, {"ridge": RidgePlanLabeler}, "finetuned"), "finetuned")


@pytest.fixture(scope="module")
def several(built):
    """Banks of six networks of four families and three tasks, two of them under several names."""
    several = []
    for family, task in (("mlp", "a"), ("conv2d", "a"), ("mlp", "b"), ("conv2d", "b"), ("other", "c"), ("last", "c")):
        own = {"name": f"{family}-{task}", "family": family, "task": task}
        bank = LabelBank.load(
            built[0] / "networks" / f"{'mlp-digits-000' if family == 'mlp' else 'conv2d-digits-001'}.npz"
        )
        several.append(dataclasses.replace(
            bank, networks={**bank.networks, **{name: np.array([value]) for name, value in own.items()}},
            units={name: values for name, values in bank.units.items() if not name.endswith("_trained")},
        ))  # fmt: skip
    return several


def test_what_labelers_are_judged_by_does_not_reach_them(several):
    """Losses on test examples, shuffled, change no prediction."""
    boards, rng = boards_of(merge_banks(several, several[0].about), MOMENTS), np.random.default_rng(0)
    others = [
        dataclasses.replace(board, judged_loss={m: rng.permutation(v) for m, v in board.judged_loss.items()},
                            judged_metric={m: rng.permutation(v) for m, v in board.judged_metric.items()},
                            judged_dense_loss=0.0)
        for board in boards
    ]  # fmt: skip
    for labeler in (RidgePlanLabeler, GBDTPlanLabeler):
        own, shuffled = (predict_boards(b, {"x": labeler}, "finetuned", ["family_and_task"]) for b in (boards, others))
        for a, b in zip(own, shuffled, strict=True):
            np.testing.assert_array_equal(a.score, b.score)


def test_who_predicts_judges_everything_on_a_bank_of_several_families_and_tasks(several, tmp_path, caplog):
    merge_banks(several, several[0].about).save(tmp_path / "bank.npz")
    job = WhoPredictsJob(str(tmp_path / "bank.npz"), labelers=["labeler/ridge", "labeler/blend"],
                         unit_labelers=["labeler/gbdt"], unit_truths=["at_once", "trained"], workers=1)  # fmt: skip
    job.check(Config())
    with RunDir(tmp_path / "run", {"command": "x"}) as run_dir:
        metrics = job.run(Config(), run_dir, NullTracker(RunInfo("test", tmp_path)))
    assert metrics["who_predicts"]["boards"] == 6
    rows = read_raw(tmp_path / "run" / "who_predicts.csv", Row)
    judged = {row.predictor for row in rows if row.zero_shot == "family_and_task" and row.scope == "plans"}
    assert judged >= {"labeler/blend", "labeler/blend without trees", "labeler/ridge without least squares",
                      "labeler/ridge without half of the networks"}  # fmt: skip
    assert {row.scope for row in rows} >= {"plans", "within_layers", "choices", "configs"}
    assert "trained" not in {row.truth for row in rows}
    assert "no damages of units 'trained'" in caplog.text
    assert {row.scope for row in rows if row.predictor == "labeler/gbdt" and row.zero_shot == "network"} == {
        "within_layers", "across_layers", "choices", "configs",
    }  # fmt: skip
    assert {row.truth for row in rows if row.scope == "plans"} == {"at_once", "refitted", "finetuned"}
    assert {row.predictor for row in rows if row.scope == "plans"} >= {"apoz", "ziplm/normalised"}
    assert {row.predictor for row in rows if row.scope == "across_layers"} >= {"reconstruction", "random",
                                                                                "refitted_error"}  # fmt: skip
    for name in ("label_economy", "plan_intervals", "plan_damage", "unit_economy"):
        assert (tmp_path / "run" / f"{name}.csv").stat().st_size > 0
    # Those of two families on a third task are judged by labelers of the others.
    for name, chosen in (("known", several[:4]), ("judged", several[4:])):
        merge_banks(chosen, several[0].about).save(tmp_path / f"{name}.npz")
    job = WhoPredictsJob(str(tmp_path / "known.npz"), judged=str(tmp_path / "judged.npz"), truths=["finetuned"],
                         labelers=["labeler/ridge"], ablations=False, workers=1)  # fmt: skip
    job.check(Config())
    with RunDir(tmp_path / "other", {"command": "x"}) as run_dir:
        job.run(Config(), run_dir, NullTracker(RunInfo("test", tmp_path)))
    rows = read_raw(tmp_path / "other" / "who_predicts.csv", Row)
    assert {row.network for row in rows} == {"other-c", "last-c"}
    assert {row.scope for row in rows} == {"plans"}
    assert {row.zero_shot for row in rows if row.predictor == "labeler/ridge"} >= {"family_and_task", "network"}
    with pytest.raises(ConfigError, match=r"job\.judged"):
        WhoPredictsJob(str(tmp_path / "known.npz"), judged=str(tmp_path / "none.npz")).check(Config())


def test_a_labeler_is_fitted_on_the_bank_and_read_back(built, tmp_path):
    folder, bank = built
    job = PretrainJob(str(folder / "label_bank.npz"), "labeler/ridge")
    job.check(Config())
    with RunDir(tmp_path / "run", {"command": "x"}) as run_dir:
        metrics = job.run(Config(), run_dir, NullTracker(RunInfo("test", tmp_path)))
    assert metrics == {"pretrain": {"boards": 2, "plans": 12}}
    labeler = load_plan_labeler(tmp_path / "run" / "plan_labeler")
    (board, _) = boards_of(bank, MOMENTS)
    damage = load_plan_damage(tmp_path / "run" / "plan_labeler").predict(board.summary, board.dense_loss)
    assert (damage.nats > 0).all()
    score, _ = labeler.predict(board.summary)
    assert np.isfinite(score).all()
    with pytest.raises(ArtifactError, match="Cannot read"):
        load_plan_labeler(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (BankJob("nowhere"), "job.zoo: nowhere is no zoo"),
        (WhoPredictsJob("nowhere"), "job.bank: there is no nowhere"),
        (PretrainJob("nowhere"), "job.bank: there is no nowhere"),
        (PretrainJob(__file__, "labeler/unknown"), "job.labeler must be out of"),
        (WhoPredictsJob(__file__, truths=["later"]), "job.truths must be out of"),
        (WhoPredictsJob(__file__, workers=0), "job.workers must be at least 1"),
    ],
)
def test_a_job_that_cannot_run_is_refused_at_once(job, message):
    with pytest.raises(ConfigError, match=message):
        job.check(Config())


@pytest.mark.parametrize("wrong", [{"configs": 0}, {"bits": (), "densities": (1.0,)}, {"bits": (2, 2)}])
def test_settings_that_leave_nothing_to_label_are_refused(wrong):
    with pytest.raises(CompressError, match="The bank needs"):
        BankSettings(**wrong)
