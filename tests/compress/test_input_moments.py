"""Second moments of the inputs of layers, against sums by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.errors import DataError
from compress.graph import trace
from compress.input_moments import collect_input_moments


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
