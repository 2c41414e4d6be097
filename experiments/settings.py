"""The schema of the root configuration: plain settings as dataclasses, components as `_target_` nodes (`Any`).

The dataclasses are mutable and use no `Literal`, because OmegaConf cannot read others.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

# Fraction of the weights that masks keep where nothing else is said.
DENSITY = 0.25


@dataclass
class BudgetSettings:
    """Upper bounds: a float in (0, 1] is a fraction of dense, an int above 1 (or any number of ms) is absolute, null is
    free."""

    macs: int | float | None = 0.5
    weight_bytes: int | float | None = None
    coded_bytes: int | float | None = None
    bit_operations: int | float | None = None
    latency_ms: int | float | None = None


@dataclass
class TrainSettings:
    """How the dense network is trained where no trained weights are given."""

    epochs: int = 10
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0


@dataclass
class MeasureSettings:
    """Which units are measured (`sample`: a number, null for all, 0 for none), and on how many examples.

    With 0 no labeler of units is fitted: formulas and searches of whole plans (`compare.methods`) decide.

    `sampling` draws them `"uniform"` or `"stratified"` over groups; `"active"` draws half of them so and spends the
    other half where the plan hangs on them.

    `plans` random plans are repaired and measured, to predict what the chosen plan will do after its repair; with 0
    nothing is predicted but the sum of its labels.
    """

    sample: int | None = 512
    images: int = 512
    batch_size: int = 256
    sampling: str = "stratified"
    plans: int = 0

    @property
    def removals(self) -> bool:
        """Whether any removal is measured, and labels of units are learned."""
        return self.sample != 0


@dataclass
class ConstraintSettings:
    """What an allocator must respect besides the budget; see `compress.allocator.Constraints`.

    On the command line the colon in the name of a group is escaped: `'+constraints.floors={conv2\\:out: 0.8}'`.
    """

    floor: float = 0.1
    round_to: int = 1
    pinned: list[str] = field(default_factory=list)
    max_bits_only: list[str] = field(default_factory=list)
    floors: dict[str, float] = field(default_factory=dict)


@dataclass
class RecoverySettings:
    """Repair without labels: steps of `compress.recover_`, on this many calibration images (null for all).

    `augment` shifts and mirrors them: a network that knows its training images by heart treats others differently.
    `data_free` makes them from the statistics of batch norms instead: no image is needed.
    `ridge` is the penalty of the refit, null for the one that cross-validation chooses for each layer.
    """

    steps: list[str] = field(default_factory=lambda: ["refit", "batch_norm"])
    layers: str = "changed"
    ridge: float | None = None
    max_rows: int = 100_000
    images: int | None = 512
    augment: bool = False
    data_free: bool = False


@dataclass
class CompareSettings:
    """Which methods share the budget, the repair and the fine-tuning, and which of them writes the plan.

    Methods are `"labeler"`, `"criterion"` (the configured one) or the name of a baseline: alone they remove below one
    threshold, with `/mac` they spend by score per cost, with `/uniform` the same fraction of every group, with
    `/knapsack` in one solve, with `/unmasked` in one solve that leaves no single weight out, with `/bits` no unit but
    formats in one solve, with `/widths` no unit but widths of whole layers, with `/masks` no unit but densities at the
    most of the few bits offered, with `/uniform_bits` no unit but the same format of all layers. `"plans/search"` is
    a labeler of whole plans' favourite among thousands of them, `"refit_loss/search"` that of a formula (the error
    in nats that a refit leaves), and `"plans/race"` the winner of brief trainings among two favourites of the labeler,
    one of the formula, and plans of criteria (an eighth and three eighths of the fine-tuning's steps: two to three
    fine-tunings and eleven repairs in all). Each search repairs `search_plans` of the plans it likes and measures them:
    what they lose corrects the labeler or formula, so that it likes others, and the plan that loses least is taken (0:
    nothing is run). By default both searches take part wherever the budget suits them. `formats_for` names those of
    these ways that may choose formats and ranks of layers, e.g. `["knapsack", "bits"]`; the others leave every layer as
    it is (empty: all may).
    If the labeler takes part, but not with the configured allocator, it joins with that; and the configured criterion,
    if it does not, per MAC. The plan is that of the method with the lowest validation loss after `choose_after`.

    With `trial_steps` each repaired model is trained so many steps in the formats, masks and ranks of its plan, after
    which it is `"tried"`: few bits heal in training, removed units less so. `"labeler/knapsack@0.1"` is a method that
    takes a tenth of all damages of formats for what is left of them then. To choose after `"tried"` without any step is
    to choose by the formats as they are rounded; before that stage no model has them.
    """

    methods: list[str] = field(
        default_factory=lambda: [
            "labeler/mac",
            "random",
            "magnitude",
            "taylor/mac",
            "second_order/mac",
            "reconstruction/mac",
            "plans/search",
            "refit_loss/search",
        ]
    )
    formats_for: list[str] = field(default_factory=list)
    finetune_epochs: int = 0
    finetune_methods: list[str] = field(default_factory=list)
    trial_steps: int = 0
    search_plans: int = 0
    choose_after: str = "recovered"

    @property
    def tries(self) -> bool:
        """Whether plans are looked at in their formats."""
        return self.trial_steps > 0 or self.choose_after == "tried"


@dataclass
class FinetuneSettings:
    """Fine-tuning with distillation: loss = (1 - alpha) task + alpha KL to the dense model at `temperature`.

    `select` is `"best"`: the epoch with the best validation metric is kept, also while quantising; or `"last"`: the end
    of the schedule, where the differences between epochs are below the noise of the validation. After `views` epochs
    the same batches come again, and the dense model's outputs are known: long trainings take half the time.
    """

    epochs: int = 3
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    temperature: float = 4.0
    alpha: float = 0.5
    patience: int | None = None
    select: str = "best"
    precision: str = "float32"
    views: int | None = None


@dataclass
class SparsifySettings:
    """Masks in the fine-tuning, besides those of the plan's densities.

    They begin where `density`, `threshold`, or one of the groups `pattern`, `weight_score` and `sparsity_schedule` is
    set; what is not set is a quarter of the weights (or what the pattern leaves), unstructured, by magnitude, removed
    by polynomial decay.

    `threshold` is for those who know the scores better than the density: weights (or blocks, by their mean) with a
    score below it go, in the unit of the scores, which for magnitude is that of the weights. They go all at once,
    before the first step or when `sparsity_schedule=one_shot` says; other schedules, `update` and `rewind` are told by
    a density. The plan's own densities, `floor` and what a pattern always keeps hold beside it. Either `scope` means
    the same: it is one number for all layers, unless `normalize` makes it one in the scale of each layer.

    `by` is `"score"`; `"criterion"`: the configured criterion of channels, its scores dealt out among their weights
    (`compress.channel_shares`; layers are compared as its own `normalize` says); or `"labeler"`: damage measured on
    cells of alike weights and learned.

    `update` removes them at once before the fine-tuning and solves for the others: `"sweep"` (SparseGPT), `"solve"`
    or `"exact"` (OBS). It keeps the density (or N of every M) in each layer, whatever the `scope`, and leaves
    embeddings, transposed convs and weights that are used more than once as they are, but for densities of the
    plan, which are masks then.

    `rewind` trains in `rounds` of lottery tickets that rewind `"weights"` or the `"learning_rate"`. Weights go back to
    what they were after `early`, a part of the first fine-tuning in [0, 1]. That is early in the fine-tuning of the
    pruned and repaired network, not in the training of the dense one: only a student, which begins untrained, goes back
    to where lottery tickets are drawn in the literature.
    """

    density: float | None = None
    threshold: float | None = None
    scope: str = "global"
    floor: float = 0.01
    normalize: str | None = None
    skip: list[str] = field(default_factory=list)
    by: str = "score"
    update: str | None = None
    rewind: str | None = None
    rounds: int = 3
    early: float = 0.02


@dataclass
class QuantizeSettings:
    """Low-bit weights per layer as the plan says, affine activations, then quantisation-aware fine-tuning.

    With `densities` below 1 or `ranks` (fractions of a layer's useful rank) each layer may also keep fewer weights or
    become two layers, or two that keep fewer weights: bits x densities x (ranks + 1) choices of each layer are measured
    and compete in one problem. The budget's `coded_bytes`, `bit_operations` or `macs` say what that buys. `scheme`,
    `granularity` and `group_size` are the number format of all quantised layers, see `compress.LayerFormat`: damages
    are measured and bytes are priced in it, at the closest bits that it has. `schemes` are others that layers may have
    in its place, each for itself: each of them is measured as often again. A `"group"` is of 64 weights where
    `group_size` is null. Other than `"symmetric"` per `"channel"`
    layers are decoded to floats before they run. `trained_ranges` trains their scales and centroids, with AdamW at
    `range_rate` times their mean magnitude. With either, activations stay float, whatever `activation_bits` says.
    `activation_ranges` of activations in few bits: `"static"` from calibration data, or `"dynamic"` of each input of a
    quantised layer at run time, see `compress.dynamic_ranges`.

    `reduce_range` keeps 8-bit weights of integer layers to 7 bits, whose sums no processor saturates; without it they
    use all 8, and files store them as `exporter.int8_encoding` says.

    `joint_plans` random plans of widths are measured beside the single ones, to learn what widths do together; with 0
    damages of widths are added as they are.
    """

    enabled: bool = True
    bits: list[int] = field(default_factory=lambda: [8, 6, 4, 3, 2])
    densities: list[float] = field(default_factory=lambda: [1.0])
    ranks: list[float] = field(default_factory=list)
    scheme: str = "symmetric"
    schemes: list[str] = field(default_factory=list)
    granularity: str = "channel"
    group_size: int | None = None
    trained_ranges: bool = False
    activation_bits: int | None = 8
    activation_ranges: str = "static"
    reduce_range: bool = True
    joint_plans: int = 0
    range_rate: float = 10.0
    epochs: int = 1
    lr: float = 1e-4


@dataclass
class ExportSettings:
    """What leaves: file formats, the tolerance against the simulation, and how latency is taken.

    `coder` of `weights.packed`: `"auto"` (the smallest that takes no more than about half a minute), `"context"`,
    `"range"`, `"zstd"` or `"none"`.

    `float_bits` below 32 round what stays float (biases, scales, without `quantize.enabled` all weights) to as many
    before the artifact is scored and saved, see `compress.round_floats_`.
    """

    formats: list[str] = field(default_factory=lambda: ["onnx"])
    coder: str = "auto"
    float_bits: int = 32
    tolerance: float = 0.02
    latency_batches: list[int] = field(default_factory=lambda: [1, 64])
    latency_repeats: int = 50


@dataclass
class Config:
    """Everything one run is made of.

    Attributes:
        name: of the experiment: folder of its runs and group in the tracker.
        seed: of everything random in the run.
        seeds: over which the compared methods are repeated inside one run, besides `seed`.
        threads: of torch; results repeat bit for bit only at the same number.
        device: of torch, for training; everything else is computed on the CPU.
        traceback: show the whole traceback of an error instead of one line.
        plan_labeler: folder of the plan labeler that `plans/search` and `plans/race` ask; null for the pretrained one.
        objective: dotted names in the final metrics that the run returns to a sweeper.
        job: what the run does.
        student: of another architecture, trained in the place of the pruned network; null for none.
        distillation: what the fine-tuned network learns from the dense one; null for its logits.
        penalty: added to the loss of the trainings in `penalized`; null for none.
        pattern, weight_score, sparsity_schedule: of masks, see `SparsifySettings`.
        rounding: how weights are rounded before they are trained on in few bits; null for the nearest level.
        factorizer: how two layers of low rank share the kernel; null leaves it to the first.
        baselines: name -> criterion node, compared with the labeler at the same budget.
        oracles: name -> oracle node.
        front: with any number in it, the labeler's damages are solved for anew at every bound of the budget times these
            numbers (and at the bound itself), the others held: what half of the bytes would cost, or twice as many. It
            decides nothing. Of a student, which is not measured, there is no front.
    """

    name: str = "run"
    seed: int = 0
    seeds: list[int] = field(default_factory=list)
    threads: int = 2
    device: str = "cpu"
    traceback: bool = False
    plan_labeler: str | None = None
    objective: list[str] = field(default_factory=lambda: ["compressed.metric.value"])
    job: Any = MISSING
    model: Any = MISSING
    data: Any = MISSING
    task: Any = MISSING
    labeler: Any = MISSING
    criterion: Any = MISSING
    allocator: Any = MISSING
    quantizer: Any = MISSING
    exporter: Any = MISSING
    runtime: Any = MISSING
    tracker: Any = MISSING
    student: Any = None
    distillation: Any = None
    penalty: Any = None
    pattern: Any = None
    weight_score: Any = None
    sparsity_schedule: Any = None
    rounding: Any = None
    factorizer: Any = None
    penalized: list[str] = field(default_factory=lambda: ["train", "finetune", "quantize"])
    baselines: dict[str, Any] = field(default_factory=dict)
    oracles: dict[str, Any] = field(default_factory=dict)
    front: list[float] = field(default_factory=list)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    constraints: ConstraintSettings = field(default_factory=ConstraintSettings)
    compare: CompareSettings = field(default_factory=CompareSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    sparsify: SparsifySettings = field(default_factory=SparsifySettings)
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)
    export: ExportSettings = field(default_factory=ExportSettings)

    @property
    def final_model(self) -> Any:
        """Node of the network that leaves compressed: the student if there is one, else the model."""
        return self.model if self.student is None else self.student
