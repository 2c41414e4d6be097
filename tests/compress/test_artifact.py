"""Artifacts: the same outputs byte for byte, honest sizes, and a clear word on every damage."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from compress.application import apply_plan
from compress.artifact import load_artifact, save_artifact
from compress.artifact_files import drop_files, read_manifest, register_file, verify_artifact
from compress.errors import ArtifactError, CompressError, PlanError
from compress.folding import fold_batch_norm
from compress.packed_artifact import pack_artifact, repack_artifact
from compress.packed_header import read_about
from compress.packing import PackedFile, write_packed
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizers.minmax import MinMaxQuantizer
from compress.structure import Structure, analyze, find_units


class Net(nn.Module):
    """Convs with batch norm, a tied pair of linears."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.fc, self.again, self.out = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.again.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(self.norm(self.conv(x)).relu(), 1).flatten(1)
        return self.out(self.again(self.fc(y).relu()).relu())


def _net(seed: int = 0, **options) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net(**options)
        model.train()
        model(torch.randn(16, 2, 4, 4))
        return model.eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def other(x) -> Structure:
    """A network of the same architecture with weights of its own, traced once; what is loaded is a copy."""
    return analyze(_net(seed=7), x)


@pytest.fixture(scope="module")
def plan(x) -> CompressionPlan:
    units = find_units(_net(), x)
    names = [unit for unit, kind in zip(units.ids, units.kind, strict=True) if kind == "layer"]
    return CompressionPlan.removing(
        units,
        [unit for unit in units.ids if unit.startswith("conv:") or unit.startswith("conv[")][:2],
        layer_formats={name: LayerFormat(bits) for name, bits in zip(names, (8, 3, 4), strict=False)},
        activation_bits=8,
    )


@pytest.fixture(scope="module")
def floats(plan) -> CompressionPlan:
    return CompressionPlan(remove_channels=plan.remove_channels, fingerprint=plan.fingerprint)


@pytest.fixture(scope="module")
def forms(x, plan, floats):
    """Form -> a network and its plan; tests leave them as they are."""
    small = apply_plan(_net(), floats, x)
    low = prepare_quantized(small, plan, [(x,)], MinMaxQuantizer())
    run_time = replace(plan, activation_ranges="dynamic")
    dynamic = prepare_quantized(small, run_time, [(x,)], MinMaxQuantizer())
    return {"float": (small, floats), "folded": (fold_batch_norm(small, x), floats), "low": (low, plan),
            "dynamic": (dynamic, run_time)}  # fmt: skip


@pytest.mark.parametrize("form", ["float", "folded", "low", "dynamic"])
def test_loading_gives_the_same_outputs_byte_for_byte(form, x, forms, other, tmp_path):
    module, written = forms[form]
    expected = module.eval()(x)
    save_artifact(tmp_path, module, written, x)
    loaded = load_artifact(tmp_path, other)
    assert torch.equal(loaded(x), expected)
    assert not loaded.training
    values = dict(loaded.named_parameters(remove_duplicate=False))
    if "again.weight" in values:
        assert values["again.weight"] is values["fc.weight"]
    loaded.train()(x).sum().backward()


@pytest.mark.parametrize("coder", ["auto", "context", "range", "none"])
@pytest.mark.parametrize("form", ["float", "folded", "low", "dynamic"])
def test_one_packed_file_gives_the_same_outputs(form, coder, x, forms, other, tmp_path):
    module, written = forms[form]
    expected = module.eval()(x)
    save_artifact(tmp_path / "a", module, written, x)
    told = pack_artifact(tmp_path / "a", coder)
    verify_artifact(tmp_path / "a")
    # It needs nothing beside it; the folder is no longer whole without it.
    packed = (tmp_path / "a" / "weights.packed").rename(tmp_path / "alone")
    loaded = load_artifact(packed, other)
    assert torch.equal(loaded(x), expected)
    values = dict(loaded.named_parameters(remove_duplicate=False))
    if "again.weight" in values:
        assert values["again.weight"] is values["fc.weight"]
    with pytest.raises(ArtifactError, match=r"weights\.packed"):
        verify_artifact(tmp_path / "a")
    integers = {tensor.name: tensor for tensor in told if tensor.entropy is not None}
    assert bool(integers) == (form in ("low", "dynamic"))
    for tensor in integers.values():
        assert 0 <= tensor.entropy <= tensor.bits
        assert coder == "context" or tensor.coded_bytes <= tensor.packed_bytes + 6


class Filtered(nn.Module):
    """A filter that is a buffer, the logarithm of a dict's input, a mask that is True where there is nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 6, 3, padding=1), nn.Linear(6, 3)
        self.register_buffer("blur", torch.tensor([[[0.25, 0.5, 0.25]]]).repeat(6, 1, 1))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x = F.conv1d(self.a(batch["power"].log()).relu(), self.blur, padding=1, groups=6)
        kept = ~batch["padded"][:, None]
        return self.b((x * kept).sum(2) / kept.sum(2))


@pytest.mark.parametrize("bits", [32, 8])
def test_buffers_as_weights_dicts_and_inputs_with_a_meaning_come_back(bits, tmp_path):
    torch.manual_seed(0)
    model = Filtered().eval()
    inputs = ({"power": torch.rand(4, 2, 7) + 0.1, "padded": torch.zeros(4, 7, dtype=torch.bool)},)
    plan = CompressionPlan.removing(find_units(model, inputs), ["a:out[2]"])
    small = apply_plan(model, plan, inputs)
    if bits < 32:
        plan = replace(plan, layer_formats={"b": LayerFormat(bits=bits)})
        small = prepare_quantized(small, plan, [inputs], MinMaxQuantizer())
    save_artifact(tmp_path / "a", small, plan, inputs)
    pack_artifact(tmp_path / "a")
    for path in (tmp_path / "a", tmp_path / "a" / "weights.packed"):
        loaded = load_artifact(path, Filtered())
        assert torch.equal(loaded(*inputs), small.eval()(*inputs))


def test_a_packed_file_of_something_else_is_refused(x, tmp_path):
    path = tmp_path / "m.packed"
    for about, words in (
        ({"a": 1}, "is no packed artifact"), ([], "is no packed artifact"), ({"inputs": 3}, "is damaged"),
        ({"inputs": [[-1, 2]]}, "is damaged"), ({"inputs": [[10**6, 10**6]]}, "is damaged"),
        ({"inputs": [[5, 2, 4, 4]], "bits": {"fc": 99}}, "is damaged"),
        ({"inputs": {"args": [{"shape": [5], "dtype": "load"}], "kwargs": []}}, "is damaged"),
        ({"inputs": [[5, 2, 4, 4]], "activation_ranges": "sometimes"}, "is damaged"),
        ({"inputs": [[5, 2, 4, 4]], "quantized": {"activations": False}}, "is damaged"),
        ({"inputs": [[5, 2, 4, 4]], "tensors": {"z": {"shape": [10**6, 10**6], "dtype": "float32"}}}, "is damaged"),
        ({"inputs": [[5, 2, 4, 4]]}, "does not fit"),
        ({"inputs": []}, "is damaged"), ({"inputs": [[5, 2, 4, 0]]}, "is damaged"), ({"inputs": [[7]]}, "is damaged"),
        ({"inputs": {"args": [{"shape": [5, 2, 4, 4], "dtype": "qint8"}], "kwargs": []}}, "is damaged"),
        ({"inputs": [[5, 2, 4, 4]], "norms": [[1]]}, "is damaged"),
        ({"inputs": [[5, 2, 4, 4]], "tied": {"a": "nowhere"}}, "(is damaged|does not fit)"),
        ({"inputs": [[5, 2, 4, 4]], "activation_bits": "x"}, "is damaged"),
    ):  # fmt: skip
        write_packed(path, {"a": torch.ones(2)}, {}, about)
        with pytest.raises(ArtifactError, match=rf"m\.packed {words}"):
            load_artifact(path, _net())


def test_a_packed_file_refuses_another_architecture(x, floats, tmp_path):
    save_artifact(tmp_path, apply_plan(_net(), floats, x), floats, x)
    pack_artifact(tmp_path)
    with pytest.raises(ArtifactError):
        load_artifact(tmp_path / "weights.packed", _net(width=8))


def test_what_is_not_float32_comes_back_too(x, floats, tmp_path):
    module = apply_plan(_net(), floats, x).half()
    manifest = save_artifact(tmp_path, module, floats, x)
    assert {"conv.weight", "norm.running_mean"} <= set(manifest["explicit"])
    pack_artifact(tmp_path)
    loaded, folder = (load_artifact(path, _net(seed=3)) for path in (tmp_path / "weights.packed", tmp_path))
    assert torch.equal(loaded(x), folder(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_large_layers_of_other_dtypes_come_back_from_a_packed_file(dtype, tmp_path):
    model, inputs = (
        nn.Sequential(nn.Linear(300, 600), nn.ReLU(), nn.Linear(600, 2)).to(dtype),
        torch.ones(2, 300).to(dtype),
    )
    plan = CompressionPlan()
    save_artifact(tmp_path, apply_plan(model, plan, inputs), plan, inputs)
    pack_artifact(tmp_path, "zstd")
    loaded = load_artifact(
        tmp_path / "weights.packed", nn.Sequential(nn.Linear(300, 600), nn.ReLU(), nn.Linear(600, 2)).to(dtype)
    )
    assert torch.equal(loaded(inputs), model(inputs))


def test_names_of_model_and_data_are_told_and_what_follows_from_them_is_not(x, floats, tmp_path):
    save_artifact(tmp_path, apply_plan(_net(), floats, x), floats, x, {"layout": "NCHW"}, ("a", "b"))
    path = tmp_path / "weights.packed"
    pack_artifact(tmp_path)
    assert (PackedFile(path).about["input"], PackedFile(path).about["class_names"]) == ({"layout": "NCHW"}, ["a", "b"])
    assert read_about(PackedFile(path)) == {}
    names = {"model": "lenet5", "data": "mnist"}
    pack_artifact(tmp_path, about=names)
    assert read_about(PackedFile(path)) == names
    assert not {"input", "class_names"} & PackedFile(path).about.keys()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["example_inputs"]["args"][0]["shape"] = [10**5, 10**5]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CompressError, match="fewer examples"):
        pack_artifact(tmp_path)


@pytest.mark.parametrize("by_place", [False, True])
def test_a_packed_file_is_packed_anew_with_the_same_content(x, forms, other, by_place, tmp_path):
    for name, (module, written) in forms.items():
        folder = tmp_path / name
        save_artifact(folder, module, written, x, {"layout": "NCHW"}, ("a", "b"))
        pack_artifact(folder, about={"model": "m"}, base_model=other if by_place else None)
        told = repack_artifact(folder / "weights.packed", tmp_path / "anew.packed", other)
        first, second = (load_artifact(path, other) for path in (folder, tmp_path / "anew.packed"))
        assert torch.equal(first(x), second(x))
        about = PackedFile(tmp_path / "anew.packed").about
        assert (about["about"], about["class_names"], about["input"]) == (
            {"model": "m"},
            ["a", "b"],
            {"layout": "NCHW"},
        )
        assert "bits" not in about
        assert {entry.name for entry in told} == set(json.loads((folder / "manifest.json").read_text())["tensors"])


def test_a_packed_file_of_places_is_refused_for_other_layers(x, forms, tmp_path):
    module, written = forms["low"]
    save_artifact(tmp_path, module, written, x)
    with pytest.raises(CompressError, match="is no layer of this model"):
        pack_artifact(tmp_path, base_model=nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU()))
    for sets, layers in (({99: (0,)}, []), ({-1: (0,)}, []), ({}, [[8, 1]]), ({}, [[8, -1], [8, 99]])):
        write_packed(tmp_path / "m.packed", {}, {}, {"inputs": [[5, 2, 4, 4]], "layers": layers}, sets=sets)
        with pytest.raises(ArtifactError, match=r"m\.packed is damaged"):
            load_artifact(tmp_path / "m.packed", _net())


@pytest.mark.parametrize("damage", ["altered", "lost"])
def test_a_packed_file_is_written_again_whatever_became_of_it(x, floats, tmp_path, damage):
    save_artifact(tmp_path, apply_plan(_net(), floats, x), floats, x)
    pack_artifact(tmp_path)
    path = tmp_path / "weights.packed"
    written = path.read_bytes()
    path.unlink() if damage == "lost" else path.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    pack_artifact(tmp_path)
    assert path.read_bytes() == written
    verify_artifact(tmp_path)


class LeNet(nn.Module):
    """Convs of 20 and 50 channels, linears of 500 and 10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.conv2(F.max_pool2d(F.relu(self.conv1(x)), 2))), 2)
        return self.fc2(F.relu(self.fc1(y.flatten(1))))


def test_what_was_made_of_another_artifact_goes(x, floats, tmp_path):
    module = apply_plan(_net(), floats, x)
    save_artifact(tmp_path, module, floats, x)
    pack_artifact(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"an export")
    register_file(tmp_path, "model.onnx")
    (tmp_path / "notes.txt").write_text("somebody's own")
    save_artifact(tmp_path, module, floats, x)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json", "model.safetensors", "notes.txt", "plan.json",
    ]  # fmt: skip


def test_a_failed_packing_leaves_the_file_that_was_there(x, floats, tmp_path):
    module = apply_plan(_net(), floats, x)
    save_artifact(tmp_path, module, floats, x)
    pack_artifact(tmp_path)
    before = (tmp_path / "weights.packed").read_bytes()
    for wrong in ({"coder": "huffman"}, {"about": {"model": object()}}):
        with pytest.raises(CompressError):
            pack_artifact(tmp_path, **wrong)
        assert (tmp_path / "weights.packed").read_bytes() == before
        verify_artifact(tmp_path)


@pytest.mark.parametrize(("scattered", "by_place", "most"), [(False, True, 56), (True, True, 77), (False, False, 80)])
def test_a_small_file_is_nearly_all_weights(scattered, by_place, most, tmp_path):
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    units = find_units(LeNet(), images)
    rng = np.random.default_rng(0)
    removed = []
    for group, kept in {"conv1:out": 4, "conv2:out": 8, "fc1:out": 20}.items():
        size = int((units.group == group).sum())
        gone = rng.permutation(size)[kept:] if scattered else range(kept, size)
        removed += [f"{group}[{i}]" for i in gone]
    formats = {name: LayerFormat(3) for name in ("conv1", "conv2", "fc1", "fc2")}
    plan = CompressionPlan.removing(units, removed, layer_formats=formats)
    model = prepare_quantized(apply_plan(LeNet(), plan, images), plan, [], MinMaxQuantizer())
    save_artifact(tmp_path, model, plan, images)
    about = {"model": "lenet5", "data": "mnist", "task": "classification"}
    told = pack_artifact(tmp_path, about=about, base_model=LeNet() if by_place else None)
    size = (tmp_path / "weights.packed").stat().st_size
    # Everything but the symbols, scales and biases themselves.
    assert size - sum(tensor.coded_bytes for tensor in told) <= most
    assert torch.equal(load_artifact(tmp_path / "weights.packed", LeNet())(images), model.eval()(images))


def test_quantised_weights_take_their_bits(x, forms, tmp_path):
    module, written = forms["low"]
    manifest = save_artifact(tmp_path, module, written, x, {"layout": "NCHW"}, ("a", "b", "c"))
    stored = load_file(tmp_path / "model.safetensors")
    assert manifest["input"] == {"layout": "NCHW"}
    assert manifest["class_names"] == ["a", "b", "c"]
    for name, entry in manifest["tensors"].items():
        if "bits" in entry:
            size = torch.Size(entry["shape"]).numel()
            assert stored[name].dtype == torch.uint8
            assert stored[name].numel() == -(-size * entry["bits"] // 8)
    assert {entry.get("bits") for entry in manifest["tensors"].values()} >= {7, 3}  # 8 bits of reduced range take 7
    assert manifest["weight_bytes"] == sum(value.nbytes for value in stored.values())


def test_formats_of_a_float_module_warn(x, plan, tmp_path):
    small = apply_plan(_net(), plan, x)
    with pytest.warns(UserWarning, match="not quantised"):
        save_artifact(tmp_path, small, plan, x)


@pytest.fixture
def saved(x, forms, tmp_path):
    module, written = forms["float"]
    save_artifact(tmp_path, module, written, x)
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "plan.json"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damage_is_named(saved, name, damage):
    path = saved / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        data[-3] ^= 1
        path.write_bytes(data if damage == "altered" else data[:-3])
    with pytest.raises(ArtifactError, match=name):
        load_artifact(saved, _net())


@pytest.mark.parametrize(
    ("key", "value"),
    [("schema_version", 99), ("files", {}), ("files", {"../evil": {}}), ("tensors", None), ("example_inputs", {})],
)
def test_a_manifest_that_was_tampered_with_is_refused(saved, key, value):
    path = saved / "manifest.json"
    manifest = json.loads(path.read_text())
    if key == "files" and value:
        value = {**manifest["files"], **value}
    manifest[key] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError):
        load_artifact(saved, _net())


def test_a_manifest_that_is_no_json_or_missing_is_refused(saved):
    (saved / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_manifest(saved)
    (saved / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        load_artifact(saved, _net())


def test_another_architecture_is_refused(saved):
    with pytest.raises(PlanError):
        load_artifact(saved, _net(width=8))


def test_exported_files_are_entered_and_checked(saved):
    (saved / "model.onnx").write_bytes(b"file")
    manifest = register_file(saved, "model.onnx")
    assert manifest["files"]["model.onnx"]["bytes"] == 4
    verify_artifact(saved)
    (saved / "model.onnx").write_bytes(b"life")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        verify_artifact(saved)
    with pytest.raises(ArtifactError, match="plain file name"):
        register_file(saved, "../model.onnx")


def test_exported_files_are_dropped_whatever_became_of_them(saved):
    for name in ("model.onnx", "model.int8.onnx"):
        (saved / name).write_bytes(b"file")
        register_file(saved, name)
    (saved / "model.int8.onnx").unlink()
    (saved / "torn.onnx").write_bytes(b"never entered")
    drop_files(saved, ".onnx")
    assert not list(saved.glob("*.onnx"))
    assert set(verify_artifact(saved)["files"]) == {"model.safetensors", "plan.json"}


def test_a_read_only_folder_is_named(x, floats, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ArtifactError, match="Cannot write"):
        save_artifact(blocker / "inside", apply_plan(_net(), floats, x), floats, x)
