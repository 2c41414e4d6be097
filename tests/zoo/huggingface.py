"""Models of the transformers library in tiny configurations; an empty zoo where it is not installed."""

import importlib.util

import torch
from architecture import Zoo, tokens
from torch import Tensor, nn

ZOO = Zoo()
_BERT = {"embeddings.word_embeddings:out": 8, "encoder.layer.0.attention.self:head": 2, "pooler.dense:out": 8,
         "encoder.layer.0.intermediate.dense:out": 12}  # fmt: skip


def _masked_tokens(batch: int) -> dict[str, Tensor]:
    idx = tokens(6, 20)(batch)
    mask = torch.ones_like(idx)
    mask[0, 4:] = 0
    return {"input_ids": idx, "attention_mask": mask}


if importlib.util.find_spec("transformers"):
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

    class _Sentence(nn.Module):
        """Mean pooling over the tokens that count."""

        def __init__(self, **config: object) -> None:
            super().__init__()
            self.bert = BertModel(_bert_config(**config), add_pooling_layer=False)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=-1)

    class _Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert, self.fc = BertModel(_bert_config()), nn.Linear(8, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.fc(self.bert(input_ids, attention_mask).pooler_output)

    def _bert_config(**config: object) -> BertConfig:
        return BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                          intermediate_size=12, max_position_embeddings=16, **config)  # fmt: skip

    @ZOO.add(_masked_tokens, groups={"bert." + k: v for k, v in _BERT.items()},
             heads=("bert.encoder.layer.0.attention.self:head",))  # fmt: skip
    def bert_classifier() -> nn.Module:
        return _Classifier()

    @ZOO.add(_masked_tokens, heads=("bert.encoder.layer.0.attention.self:head",),
             groups={"bert.encoder.layer.0.attention.self:head": 2, "bert.encoder.layer.0.intermediate.dense:out": 12},
             blocked={"bert.embeddings.word_embeddings": "output"})  # fmt: skip
    def bert_sentence_eager() -> nn.Module:
        return _Sentence(attn_implementation="eager")

    class _Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=1,
                                eos_token_id=1)  # fmt: skip
            self.gpt = GPT2LMHeadModel(config)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.gpt(input_ids, use_cache=False).logits

    @ZOO.add(tokens(6, 20), groups={"gpt.transformer.wte:out": 8, "gpt.transformer.h.0.attn:head": 2,
                                    "gpt.transformer.h.0.mlp.c_fc:out": 32},
             heads=("gpt.transformer.h.0.attn:head",))  # fmt: skip
    def gpt2() -> nn.Module:
        return _Logits()
