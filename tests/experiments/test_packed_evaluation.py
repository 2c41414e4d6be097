"""One packed file, scored from nothing but itself, the code of the model it names, and the data."""

import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.application import apply_plan
from compress.artifact import load_artifact, save_artifact
from compress.errors import ArtifactError, CompressError
from compress.float_rounding import round_floats_
from compress.packed_artifact import pack_artifact, repack_artifact
from compress.packed_header import read_about
from compress.packing import VERSION, PackedFile, write_packed
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizers.minmax import MinMaxQuantizer
from compress.structure import analyze, find_units
from experiments import evaluate
from experiments.composition import compose_config
from experiments.config import build
from experiments.config_names import names_of
from experiments.data import load_digits
from experiments.models import DigitsCNN, DigitsMLP, LeNet5
from experiments.packed_evaluation import evaluate_file, model_of

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "results" / "records"
NAMES = {"model": "digits_cnn", "data": "digits", "task": "classification"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The artifact of a narrow digits net at 3 bits, its weights as they were drawn."""
    folder = tmp_path_factory.mktemp("artifact")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DigitsCNN().eval()
    x = load_digits().example_inputs()
    units = find_units(model, x)
    kept = {group: set(units.index[units.group == group][:6]) for group in set(units.group)}
    removed = [unit for unit, group, index, kind in zip(units.ids, units.group, units.index, units.kind, strict=True)
               if kind == "channel" and index not in kept[group]]  # fmt: skip
    formats = {name: LayerFormat(3) for name in ("conv1", "conv2", "conv3", "fc1", "fc2")}
    plan = CompressionPlan.removing(units, removed, layer_formats=formats)
    low = prepare_quantized(apply_plan(model, plan, x), plan, [], MinMaxQuantizer())
    save_artifact(folder, round_floats_(low), plan, x)
    return folder


@pytest.fixture
def path(folder, tmp_path):
    pack_artifact(folder, about=NAMES)
    return (folder / "weights.packed").rename(tmp_path / "small.packed")


@pytest.fixture(autouse=True)
def unpacked(folder):
    """Only one file is entered at a time."""
    before = (folder / "manifest.json").read_text()
    yield
    (folder / "manifest.json").write_text(before)


@pytest.mark.parametrize("coder", ["auto", "zstd", "context"])
def test_sizes_of_tensors_are_read_from_the_file_alone(path, tmp_path, coder):
    other = tmp_path / "other.packed"
    told = repack_artifact(path, other, DigitsCNN(), coder)
    found = evaluate_file(other, limit=30)["tensors"]
    assert [(t["name"], t["values"], t["bits"], t["packed_bytes"], t["coded_bytes"], t["entropy"]) for t in found] == [
        (t.name, t.values, t.bits, t.packed_bytes, t.coded_bytes, t.entropy) for t in told
    ]
    assert 0 < sum(t["coded_bytes"] for t in found) < other.stat().st_size


def test_a_fresh_process_needs_no_code_that_trains(path):
    trains = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for package in ("compress", "experiments")
        for file in (ROOT / package).rglob("*.py")
        if re.search(r"\.backward\(|torch\.optim|autograd\.grad|import finetuning", file.read_text(encoding="utf-8"))
    ]
    assert "compress.finetuning" in trains
    # A module that is None cannot be imported.
    code = (f"import runpy, sys; sys.modules.update(dict.fromkeys({['autolabel', *trains]!r}));"
            "runpy.run_module('experiments.evaluate', run_name='__main__', alter_sys=True)")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == evaluate_file(path)


def test_bytes_and_error_on_the_test_set(path):
    result = evaluate_file(path)
    images, labels = load_digits().test.batch(torch.arange(len(load_digits().test)))
    found = load_artifact(path, DigitsCNN())(images).argmax(1)
    expected = 100 * (found != labels).double().mean().item()
    assert result["error_percent"] == pytest.approx(expected, abs=1e-5)
    assert result["metric"] == pytest.approx(100 - expected)
    assert (result["metric_name"], result["model"], result["data"]) == ("accuracy_percent", "digits_cnn", "digits")
    assert result["examples"] == len(labels)
    assert result["file_bytes"] == path.stat().st_size < 1500
    assert evaluate_file(path, limit=30)["examples"] == 30


def test_a_fresh_process_needs_no_training_code(path):
    code = (
        "import sys; sys.argv = ['evaluate', sys.argv[1]]\n"
        "from experiments import evaluate\n"
        "try: evaluate.main()\n"
        "finally: sys.stderr.write(' '.join(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["error_percent"] == evaluate_file(path)["error_percent"]
    modules = set(done.stderr.split())
    assert "experiments.packed_evaluation" in modules
    assert not {"autolabel", "lightgbm", "wandb", "experiments.stages", "experiments.run"} & modules


def test_a_damaged_file_ends_with_one_line(path, capsys, monkeypatch):
    path.write_bytes(path.read_bytes()[:-7])
    monkeypatch.setattr("sys.argv", ["evaluate", str(path)])
    with pytest.raises(SystemExit) as exit_:
        evaluate.main()
    assert exit_.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "small.packed is truncated or altered" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({}, "does not name its model"),
        ({"model": "digits_cnn"}, "does not name its data"),
        ({"model": "nothing"}, "'nothing', which is no file of conf/model"),
        ({"model": "../model/digits_cnn"}, "no file of conf/model"),
        ({"model": "digits_cnn.yaml"}, "no file of conf/model"),
        ({"model": "digits_cnn", "data": "/etc/passwd"}, "no file of conf/data"),
        ({"model": "digits_cnn", "data": "digits", "task": "os.system"}, "no file of conf/task"),
        ({"model": {"_target_": "os.system"}}, "does not say what it is"),
        (["digits_cnn"], "does not say what it is"),
    ],
)
def test_what_a_file_names_must_be_there(about, words, tmp_path):
    write_packed(tmp_path / "m.packed", {}, {}, {"inputs": [[1, 1, 8, 8]], "about": about})
    with pytest.raises(ArtifactError, match=rf"m\.packed .*{words}"):
        evaluate_file(tmp_path / "m.packed")


@pytest.mark.parametrize("shape", [[1, 1, 1, 1], [3], [], [1, 9, 8, 8], [0, 1, 8, 8]])
def test_inputs_that_do_not_fit_the_model_are_an_error_of_the_user(shape, tmp_path):
    write_packed(tmp_path / "m.packed", {"a": torch.ones(1)}, {}, {"inputs": [shape], "about": NAMES})
    with pytest.raises(CompressError):
        evaluate_file(tmp_path / "m.packed")


def test_another_metric_has_no_error(path, monkeypatch):
    class Agreement:
        metric_name = "agreement"

        def inputs(self, batch):
            return (batch[0],)

        def score(self, outputs, batches):
            return 12.5

    def build_other(node, key, **options):
        return Agreement() if key == "task" else build(node, key, **options)

    monkeypatch.setattr("experiments.packed_evaluation.build", build_other)
    result = evaluate_file(path)
    assert (result["metric"], result["error_percent"], result["metric_name"]) == (12.5, None, "agreement")


def test_the_base_model_gives_structure_only(path):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = evaluate_file(path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert evaluate_file(path) == first


EARLIER = sorted((ROOT / "tests" / "files").glob("*_version*.packed"))


@pytest.mark.parametrize("path", [*sorted(RECORDS.glob("*.packed")), *EARLIER], ids=lambda path: path.stem)
def test_a_record_says_what_it_is(path):
    """Also those that an earlier version of the format wrote."""
    about = read_about(PackedFile(path))
    assert {"model", "data"} <= set(about)
    for group, name in about.items():
        assert (ROOT / "conf" / group / f"{name}.yaml").is_file()


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_a_file_of_an_earlier_version_is_packed_anew(path, tmp_path):
    assert path.read_bytes()[3] in (2, 3)
    model = model_of(path)
    # What the fast coder writes is of the same version.
    repack_artifact(path, tmp_path / "anew.packed", model, coder="zstd")
    assert (tmp_path / "anew.packed").read_bytes()[3] == VERSION
    x = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    first, second = (load_artifact(file, model) for file in (path, tmp_path / "anew.packed"))
    assert torch.equal(first(x), second(x))


def test_a_record_is_read_as_it_was_written():
    """A file of this version, whose words keep their places."""
    packed = PackedFile(RECORDS / "lenet5_small.packed")
    assert packed.about == {
        "inputs": [[2, 1, 28, 28]], "layers": [[{"bits": 4, "granularity": "tensor"}, 4]], "formatted": True,
        "about": {"model": "lenet5", "data": "mnist"},
    }  # fmt: skip
    assert {name: len(members) for name, members in packed.sets.items()} == {0: 5, 1: 35, 2: 485}
    assert (RECORDS / "lenet5_small.packed").stat().st_size <= 1100


@pytest.mark.parametrize("model", [DigitsCNN, DigitsMLP], ids=["other layers", "other inputs"])
def test_a_record_says_that_it_does_not_fit_another_model(model):
    with pytest.raises(ArtifactError, match=r"lenet5_small\.packed (is damaged|does not fit)"):
        load_artifact(RECORDS / "lenet5_small.packed", model())


def test_a_record_that_lies_is_refused_or_loads(tmp_path):
    """Its checksum holds, but not what it says."""
    data, path, rng = (RECORDS / "lenet5_small.packed").read_bytes(), tmp_path / "lie.packed", np.random.default_rng(0)
    structure, refused = analyze(LeNet5(), torch.zeros(2, 1, 28, 28)), 0
    for i in range(20):
        body = bytearray(data[8:])
        if i % 4:  # one in two early in the file, where plan and shapes are
            body[rng.integers(len(body) if i % 2 else 150)] ^= int(rng.integers(1, 256))
        else:
            body = body[: rng.integers(len(body))] + rng.bytes(rng.integers(3))
        path.write_bytes(data[:4] + zlib.crc32(body).to_bytes(4, "little") + body)
        try:
            load_artifact(path, structure)
        except ArtifactError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("removed", [range(20), range(18, 25), [25]])
def test_a_record_of_another_model_is_refused(removed, tmp_path):
    packed = PackedFile(RECORDS / "lenet5_small.packed")
    write_packed(tmp_path / "lie.packed", {}, {}, packed.about, "none", {**packed.sets, 0: removed})
    with pytest.raises(
        ArtifactError, match=r"lie\.packed is damaged, or does not fit the base model .*The plan removes"
    ):
        load_artifact(tmp_path / "lie.packed", LeNet5())


def test_how_images_are_divided_and_varied_says_nothing_about_a_file():
    config = compose_config(["experiment=cifar10_coded", "data.calibration=7", "data.flip=false", "data.padding=0"])
    assert names_of(config) == {"model": "resnet_cifar", "data": "cifar10"}
    assert names_of(compose_config(["experiment=cifar10_coded", "model.depth=32"])) == {}
