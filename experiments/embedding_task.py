"""What a sentence encoder is for: stay near the dense model's embeddings, and rank pairs as people do."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import DataError

Batch = tuple[Tensor, ...]

# Length of the noise on targets where gradients are asked for, see `attach_targets`.
TARGET_NOISE = 0.05


class EmbeddingTask:
    """Embeddings of sentence pairs: loss is the squared distance to a target, metric is Spearman x 100 on STS-B.

    Batches are `(input_ids, attention_mask, gold, pair, target)`, one row a sentence, see
    `experiments.data.stsb.SentencePairPart`. The loss needs no label: `target` is what the dense model says
    (`attach_targets`). For unit vectors it is `2 - 2 cos`, in [0, 4].
    """

    metric_name = "spearman"
    higher_is_better = True

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch[0], batch[1]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        target = batch[4]
        if target.shape[-1] != outputs.shape[-1]:
            raise DataError(
                f"The batch must carry target embeddings of width {outputs.shape[-1]}. Got width {target.shape[-1]}. "
                f"Call EmbeddingTask.attach_targets(dense_model, batches) first."
            )
        return (outputs - target).square().sum(dim=-1)

    def score(self, outputs: Tensor, batches: list[Batch]) -> float:
        """Spearman correlation (x 100) of cosine and gold score over the pairs; 0 where one of them is constant."""
        gold = torch.cat([batch[2] for batch in batches])
        pair = torch.cat([batch[3] for batch in batches])
        order = pair.argsort(stable=True)
        first, second = order[0::2], order[1::2]
        if len(pair) % 2 or not torch.equal(pair[first], pair[second]):
            raise DataError(
                "The 'batches' parameter of EmbeddingTask.score must hold both sentences of every pair, once."
            )
        outputs = outputs.detach().cpu().double()
        cosine = F.cosine_similarity(outputs[first], outputs[second], dim=-1)
        if len(first) < 2 or cosine.max() == cosine.min() or gold.max() == gold.min():
            return 0.0
        value = float(spearmanr(cosine.numpy(), gold[first].numpy()).statistic)
        return 100.0 * value if math.isfinite(value) else 0.0

    def attach_targets(
        self, model: nn.Module, batches: Iterable[Any], noise: float = 0.0, seed: int = 0
    ) -> list[Batch]:
        """The batches with `model`'s embeddings as targets, the model in evaluation mode and left as it was.

        Args:
            model: the dense encoder.
            batches: as `make_batches` gives them.
            noise: length of a random vector added to each target. At the dense model the distance has its minimum and
                every gradient is zero, so scores made of gradients say nothing. With noise their expected square is the
                curvature of the distance (Fisher information of a Gaussian around the embedding), while the mean damage
                of a change stays what it was. Use it for calibration only, 0 wherever a loss is reported.
            seed: of the noise.
        """
        if not (math.isfinite(noise) and noise >= 0):
            raise DataError(f"The 'noise' parameter of attach_targets must be a finite number >= 0. Got {noise}.")
        generator = torch.Generator().manual_seed(seed)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                embeddings = [(batch, model(*self.inputs(batch))) for batch in batches]
        finally:
            model.train(was_training)
        attached = []
        for batch, embedding in embeddings:
            direction = F.normalize(torch.randn(embedding.shape, generator=generator), dim=-1)
            attached.append((*batch[:4], embedding + noise * direction.to(embedding)))
        return attached
