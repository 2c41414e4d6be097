"""Second moments of the inputs of layers, against sums by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.application import apply_plan
from compress.errors import DataError
from compress.graph import trace
from compress.input_moments import collect_input_moments
from compress.layer_moments import collect_layer_moments
from compress.output_sensitivity import collect_output_sensitivity
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizers import MseQuantizer
from compress.recovery import recover_
from compress.statistics import check_batches, collect_statistics
from compress.structure import analyze
from compress.task import ClassificationTask


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(name="net", scope="module")
def a_net_of_convs_and_linears():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), nn.ReLU(),
                              nn.Dropout(), nn.Conv2d(4, 4, 1, groups=2), nn.ConvTranspose2d(4, 2, 1), nn.Flatten(1),
                              nn.Linear(2 * 3 * 3, 5))  # fmt: skip
    x = seeded(6, 2, 5, 5)
    return trace(model.eval(), x).module, x


def test_a_linear_layer_by_hand():
    module = trace(nn.Sequential(nn.Linear(2, 3)), torch.ones(2, 2)).module
    batches = [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]),), (torch.tensor([[0.0, 2.0]]),)]
    (found,) = collect_input_moments(module, batches).values()
    torch.testing.assert_close(found, torch.tensor([[10.0, 2.0], [2.0, 8.0]], dtype=torch.float64) / 3)


def test_a_conv_reads_patches_padding_included(net):
    module, x = net
    found = collect_input_moments(module, [(x[:4],), (x[4:],)])
    assert list(found) == ["0", "6"], "groups, transposed convs are left out"
    patches = F.unfold(x.double(), (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1)).movedim(1, 2).flatten(0, 1)
    torch.testing.assert_close(found["0"], patches.T @ patches / len(patches))
    outputs = patches @ module.get_parameter("0.weight").detach().double().flatten(1).T
    weight = module.get_parameter("0.weight").detach().double().flatten(1)
    assert float((weight @ found["0"] @ weight.T).trace()) == pytest.approx(float(outputs.square().sum(1).mean()))


def test_a_drawing_of_positions_is_reproducible_and_near(net):
    module, _ = net
    x = seeded(200, 2, 5, 5, seed=1)
    whole = collect_input_moments(module, [(x,)])["0"]
    few = [collect_input_moments(module, [(x,)], max_rows=800, seed=seed)["0"] for seed in (1, 1, 2)]
    assert torch.equal(few[0], few[1])
    assert not torch.equal(few[0], few[2])
    assert (few[0] - whole).norm() < 0.3 * whole.norm()
    alone = collect_input_moments(module, [(x,)], layers=["6"], max_rows=800)
    assert list(alone) == ["6"]


def test_module_and_generators_stay_as_they_were(net):
    module, x = net
    module.train()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    rng = torch.random.get_rng_state()
    collect_input_moments(module, [(x,)])
    assert module.training
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    module.eval()


def test_what_cannot_be_measured(net):
    module, x = net
    with pytest.raises(DataError, match="at least one batch"):
        collect_input_moments(module, [])
    with pytest.raises(DataError, match="layer '0' are NaN"):
        collect_input_moments(module, [(x * float("nan"),)])
    wide = trace(nn.Sequential(nn.Linear(4097, 1)), torch.ones(2, 4097)).module
    assert collect_input_moments(wide, [(torch.ones(2, 4097),)]) == {}


def test_inputs_of_another_type_are_named_wherever_the_model_is_run():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    structure, task, x = analyze(model, seeded(8, 6)), ClassificationTask(), seeded(8, 6).double()
    small, labelled = apply_plan(structure, CompressionPlan()), [(x, torch.zeros(8, dtype=torch.long))]
    formats = CompressionPlan(layer_formats={"0": LayerFormat(8)}, activation_bits=8)
    for attempt in (
        lambda: collect_input_moments(small, [(x,)]),
        lambda: collect_layer_moments(small, [(x,)]),
        lambda: collect_output_sensitivity(structure, task, labelled),
        lambda: prepare_quantized(small, formats, [(x,)], MseQuantizer()),
    ):
        with pytest.raises(DataError, match=r"does not run on inputs of \(8, 6\) float64"):
            attempt()
    for attempt in (
        lambda: collect_statistics(structure, task, labelled),
        lambda: recover_(small, structure, [(x,)]),
    ):
        with pytest.raises(DataError, match="Batch 0 is of float64, but the model was traced with float32"):
            attempt()
    # What is counted may be of any whole type.
    words = analyze(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2)), torch.zeros(2, 3, dtype=torch.long))
    check_batches(words, task, [(torch.zeros(2, 3, dtype=torch.int32), None)])
