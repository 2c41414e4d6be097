"""Masks: patterns, selection and reading back, on weights small enough to do by hand."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from compress import CompressionPlan, DataError, LayerFormat, PlanError, analyze
from compress.errors import CompressError
from compress.graph import trace
from compress.masking import apply_masks_, choose_masks, density_of, masks_of
from compress.pattern_text import pattern_of
from compress.patterns import BlockPattern, NOfMPattern
from compress.prunable_weights import prunable_weights
from compress.quantization import prepare_quantized
from compress.quantizers.minmax import MinMaxQuantizer


def linear(values):
    values = torch.tensor(values, dtype=torch.float32)
    layer = nn.Linear(values.shape[1], values.shape[0])
    with torch.no_grad():
        layer.weight.copy_(values)
    return layer


def masks(values, *args, **settings):
    """The masks of a chain of linear layers with these scores, as nested lists of 0 and 1."""
    model = nn.Sequential(*(linear(v) for v in values))
    scores = {str(i): torch.tensor(v, dtype=torch.float64) for i, v in enumerate(values)}
    found = choose_masks(model, scores, *args, **settings)
    return [found[name].int().tolist() for name in found]


def test_top_k_in_a_layer_is_exact_and_ties_go_to_the_first():
    assert masks([[[1.0, 4.0, 2.0, 3.0]]], 0.5) == [[[0, 1, 0, 1]]]
    assert masks([[[5.0, 5.0], [5.0, 5.0]]], 0.75) == [[[1, 1], [1, 0]]]
    assert masks([[[1.0, 2.0, 3.0]]], 1.0) == [[[1, 1, 1]]]


def test_global_scope_compares_layers_and_a_floor_keeps_some_of_each():
    values = [[[9.0, 8.0], [7.0, 6.0]], [[1.0, 2.0], [3.0, 4.0]]]
    assert masks(values, 0.5, scope="layer") == [[[1, 1], [0, 0]], [[0, 0], [1, 1]]]
    # Four of eight: the second layer keeps its best weight only because none may be emptied.
    assert masks(values, 0.5, scope="global") == [[[1, 1], [1, 0]], [[0, 0], [0, 1]]]
    assert masks(values, 0.5, scope="global", floor=0.5) == [[[1, 1], [0, 0]], [[0, 0], [1, 1]]]
    # What must stay may be more than the density asks for.
    assert masks(values, 0.01, scope="global") == [[[1, 0], [0, 0]], [[0, 0], [0, 1]]]


def test_threshold():
    assert masks([[[1.0, 4.0], [2.0, 3.0]]], threshold=2.0) == [[[0, 1], [1, 1]]]
    assert masks([[[1.0, 4.0], [2.0, 3.0]]], threshold=9.0) == [[[0, 1], [0, 0]]]


def test_overrides_and_skip_stand_apart():
    values = [[[1.0, 2.0]], [[3.0, 4.0]], [[7.0, 8.0]]]
    model = nn.Sequential(*(linear(v) for v in values))
    scores = {str(i): torch.tensor(v) for i, v in enumerate(values)}
    found = choose_masks(model, scores, 0.5, scope="global", overrides={"2": 1.0}, skip=["0"])
    assert {name: mask.tolist() for name, mask in found.items()} == {"1": [[False, True]], "2": [[True, True]]}


def test_blocks_count_by_their_mean_and_the_edge_may_be_smaller():
    scores = [[1.0, 1, 9], [1, 1, 9], [5, 5, 0]]
    # Blocks of 2 x 2: means 1, 9 (of two weights), 5 (of two), 0 (of one); 4 of 9 weights are two blocks.
    assert masks([scores], 4 / 9, pattern="block2x2") == [[[0, 0, 1], [0, 0, 1], [1, 1, 0]]]
    # Rows as blocks: means 11/3, 11/3 and 10/3.
    assert masks([scores], 6 / 9, pattern=BlockPattern(1, 3)) == [[[1, 1, 1], [1, 1, 1], [0, 0, 0]]]


def test_channels_go_as_whole_rows():
    assert masks([[[1.0, 9], [4, 4], [6, 5]]], 2 / 3, pattern="channel") == [[[1, 1], [0, 0], [1, 1]]]


def test_two_of_four_keeps_the_best_of_every_group():
    scores = [[1.0, 4, 2, 3, 8, 7, 6, 5], [1, 1, 2, 2, 9, 0, 0, 8]]
    half = [[0, 1, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0, 0, 1]]
    assert masks([scores], 0.5, pattern="2:4") == [half]
    assert masks([scores], pattern="2:4") == [half]
    # On the way there the others go by importance: 12 of 16 stay, the eight best of their groups among them.
    assert masks([scores], 0.75, pattern="2:4") == [[[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 0, 1]]]
    # Three inputs: the last group has one, which stays.
    assert masks([[[1.0, 2, 3]]], pattern="1:2") == [[[0, 1, 1]]]


def test_n_of_m_of_a_conv_runs_along_the_input_channels():
    conv = nn.Conv2d(4, 2, 3)
    scores = torch.rand(conv.weight.shape, generator=torch.Generator().manual_seed(0))
    (mask,) = choose_masks(nn.Sequential(conv), {"0": scores}, pattern="1:4").values()
    assert (mask.sum(1) == 1).all()
    torch.testing.assert_close((scores * mask).sum(1), scores.amax(1))
    depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    assert choose_masks(depthwise, {"0": torch.rand(4, 1, 3, 3)}, pattern="2:4")["0"].all()


def test_what_is_gone_stays_gone_and_counts_as_gone():
    values = [[[9.0, 8.0, 7.0, 6.0]]]
    model = nn.Sequential(linear(values[0]))
    scores = {"0": torch.tensor(values[0])}
    earlier = {"0": torch.tensor([[False, True, True, True]])}
    found = choose_masks(model, scores, 0.5, within=earlier)["0"]
    assert found.tolist() == [[False, True, True, False]]
    assert choose_masks(model, scores, 1.0, within=earlier)["0"].equal(earlier["0"])
    assert choose_masks(model, scores, pattern="2:4", within=earlier)["0"].sum() == 2
    blocks = choose_masks(model, scores, 0.5, pattern="block1x2", within=earlier)["0"]
    # The living half of the first block is worth 8, the second block 6.5: one weight or three, as close to two.
    assert blocks.tolist() == [[False, True, False, False]]


def test_outputs_of_a_transposed_conv_and_features_of_an_embedding_are_channels():
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 1), nn.Flatten(), nn.Embedding(5, 4))
    scores = {"0": torch.zeros(2, 3, 1, 1), "2": torch.zeros(5, 4)}
    scores["0"][:, 1] = 1.0
    scores["2"][:, 2] = 1.0
    found = choose_masks(model, scores, 0.3, pattern="channel")
    assert found["0"].flatten(1).tolist() == [[False, True, False]] * 2
    assert found["2"].tolist() == [[False, False, True, False]] * 5


def test_apply_read_back_and_density():
    model = nn.Sequential(linear([[1.0, 2.0], [3.0, 4.0]]), nn.ReLU(), linear([[5.0, 6.0]]))
    mask = {"0": torch.tensor([[True, False], [False, False]])}
    apply_masks_(model, mask)
    assert model[0].weight.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert masks_of(model)["0"].equal(mask["0"])
    found = density_of(model)
    assert (found.layers, found.kept, found.weights, found.total) == ({"0": 0.25, "2": 1.0}, 3, 6, 0.5)
    assert density_of(model, skip=["0"]).total == 1.0
    with pytest.raises(PlanError, match="'7', which is no layer"):
        apply_masks_(model, {"7": mask["0"]})
    with pytest.raises(PlanError, match=r"has shape \(2, 1\)"):
        apply_masks_(model, {"2": torch.ones(1, 2, dtype=torch.bool), "0": torch.zeros(2, 1, dtype=torch.bool)})
    assert found == density_of(model)


def test_weights_are_found_traced_parametrized_tied_and_fake_quantised():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2)
            self.a, self.b, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            x = torch.relu(self.norm(self.conv(x))).flatten(1)
            return self.last(self.b(torch.relu(self.a(x))))

    model, x = Net().eval(), torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    traced = trace(model, x).module
    plain = prunable_weights(model)
    assert {name: w.kind for name, w in plain.items()} == {"conv": "conv", "a": "linear", "last": "linear"}
    assert [(w.name, w.kind, id(w.tensor)) for w in prunable_weights(traced).values()] == [
        (w.name, w.kind, id(w.tensor)) for w in plain.values()
    ]
    plan = CompressionPlan(layer_formats={"last": LayerFormat(8)})
    quantised = prepare_quantized(analyze(model, x).traced.module, plan, [(x,)], MinMaxQuantizer())
    assert list(prunable_weights(quantised)) == list(plain)
    for module in (model, traced):
        parametrize.register_parametrization(module.get_submodule("last"), "weight", Doubled())
        weight = prunable_weights(module)["last"].tensor
        assert weight is module.get_submodule("last").parametrizations.weight.original
        apply_masks_(module, {"last": torch.zeros(3, 8, dtype=torch.bool)})
        assert not module.get_submodule("last").weight.any()
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    assert not prunable_weights(normed)


def test_attention_is_found_like_its_trace():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    traced = trace(model, torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))).module
    assert set(prunable_weights(model)) == set(prunable_weights(traced)) >= {"self_attn.in_proj_weight", "linear1"}


@pytest.mark.parametrize("text", ["unstructured", "channel", "2:4", "1:3", "block4x4", "block1x16"])
def test_a_pattern_is_what_its_text_says(text):
    assert pattern_of(text).text == text


@pytest.mark.parametrize("text", ["", "dense", "2 of 4", "block4", "4:2", "0:4", "block0x4", 3])
def test_texts_that_are_no_pattern(text):
    with pytest.raises(CompressError):
        pattern_of(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "no density of its own"), ({"density": 0.0}, r"in \(0, 1\]"), ({"density": 1.5}, r"in \(0, 1\]"),
     ({"density": 0.3, "pattern": "2:4"}, r"in \[0.5, 1\]"), ({"density": 0.5, "scope": "net"}, "'scope' parameter"),
     ({"density": 0.5, "threshold": 1.0}, "not both"), ({"density": 0.5, "floor": 2.0}, "'floor' parameter"),
     ({"density": 0.5, "overrides": {"0": 0.0}}, "density '0'"), ({"density": 0.5, "skip": ["nope"]}, "names no layer"),
     ({"density": 0.5, "overrides": {"nope": 0.5}}, "names no layer")])  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(CompressError, match=message):
        masks([[[1.0, 2.0]]], **settings)


def test_scores_that_do_not_fit_are_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    good = {"0": torch.ones(2, 2), "1": torch.ones(1, 2)}
    with pytest.raises(PlanError, match="no scores of layer '1'"):
        choose_masks(model, {"0": good["0"]}, 0.5)
    with pytest.raises(PlanError, match="scores of '5'"):
        choose_masks(model, {**good, "5": good["0"]}, 0.5)
    with pytest.raises(DataError, match="shape"):
        choose_masks(model, {**good, "1": torch.ones(2, 2)}, 0.5)
    with pytest.raises(DataError, match="NaN"):
        choose_masks(model, {**good, "1": torch.full((1, 2), torch.nan)}, 0.5)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("seed", range(5))
def test_masks_of_lower_density_lie_within_those_of_higher(scope, seed):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(30, 7))
    scores = {"0": torch.rand(8, 3, 3, 3, generator=generator), "2": torch.rand(7, 30, generator=generator)}
    for pattern in ("unstructured", "channel", "block4x4", NOfMPattern(1, 5)):
        last = None
        for density in (0.9, 0.6, 0.35, 0.25):
            found = choose_masks(model, scores, density, scope=scope, pattern=pattern)
            if pattern == "unstructured" and scope == "global":
                assert sum(int(mask.sum()) for mask in found.values()) == round(density * 426)
            assert last is None or all((mask <= last[name]).all() for name, mask in found.items())
            last = found
