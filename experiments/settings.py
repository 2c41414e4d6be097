"""The schema of the root configuration: plain settings as dataclasses, components as `_target_` nodes (`Any`).

The dataclasses are mutable and use no `Literal`, because OmegaConf cannot read others.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class BudgetSettings:
    """Upper bounds: a float in (0, 1] is a fraction of dense, an int above 1 is absolute, null is free."""

    macs: int | float | None = 0.5
    weight_bytes: int | float | None = None


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
    """Which units are measured (`sample`: a number, or null for all), and on how many examples.

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


@dataclass
class ConstraintSettings:
    """What an allocator must respect besides the budget; see `compress.allocator.Constraints`."""

    floor: float = 0.1
    round_to: int = 1
    pinned: list[str] = field(default_factory=list)
    max_bits_only: list[str] = field(default_factory=list)


@dataclass
class RecoverySettings:
    """Repair without labels: steps of `compress.recover_`, on this many calibration images (null for all).

    `augment` shifts and mirrors them: a network that knows its training images by heart treats others differently.
    `ridge` is the penalty of the refit, null for the one that cross-validation chooses for each layer.
    """

    steps: list[str] = field(default_factory=lambda: ["refit", "batch_norm"])
    layers: str = "changed"
    ridge: float | None = None
    max_rows: int = 100_000
    images: int | None = 512
    augment: bool = False


@dataclass
class CompareSettings:
    """Which methods share the budget, the repair and the fine-tuning, and which of them writes the plan.

    Methods are `"labeler"`, `"criterion"` (the configured one) or the name of a baseline: alone they remove below one
    threshold, with `/mac` they spend by score per cost, with `/uniform` the same fraction of every group, with
    `/knapsack` in one solve. The labeler with the configured allocator and the configured criterion per MAC join by
    themselves. The plan is that of the method with the lowest validation loss after `choose_after`.
    """

    methods: list[str] = field(
        default_factory=lambda: ["labeler/mac", "random", "magnitude", "taylor/mac", "second_order/mac"]
    )
    finetune_epochs: int = 0
    finetune_methods: list[str] = field(default_factory=list)
    choose_after: str = "recovered"


@dataclass
class FinetuneSettings:
    """Fine-tuning with distillation: loss = (1 - alpha) task + alpha KL to the dense model at `temperature`."""

    epochs: int = 3
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    temperature: float = 4.0
    alpha: float = 0.5
    patience: int | None = None
    precision: str = "float32"


@dataclass
class QuantizeSettings:
    """Low-bit weights per layer as the plan says, affine activations, then quantisation-aware fine-tuning.

    `joint_plans` random plans of widths are measured beside the single ones, to learn what widths do together; with 0
    damages of widths are added as they are.
    """

    enabled: bool = True
    bits: list[int] = field(default_factory=lambda: [8, 6, 4, 3, 2])
    activation_bits: int | None = 8
    joint_plans: int = 0
    epochs: int = 1
    lr: float = 1e-4


@dataclass
class ExportSettings:
    """What leaves: file formats, the tolerance against the simulation, and how latency is taken.

    `coder` of `weights.packed`: `"auto"` (the smallest that takes no more than about half a minute), `"context"`,
    `"range"`, `"zstd"` or `"none"`.
    """

    formats: list[str] = field(default_factory=lambda: ["onnx"])
    coder: str = "auto"
    tolerance: float = 0.02
    latency_batches: list[int] = field(default_factory=lambda: [1, 64])
    latency_repeats: int = 50


@dataclass
class Config:
    """Everything one run is made of.

    Attributes:
        name: of the experiment: folder of its runs and group in the tracker.
        seed: of everything random in the run.
        seeds: over which the compared methods are repeated inside one run.
        threads: of torch; results repeat bit for bit only at the same number.
        device: of torch, for training; everything else is computed on the CPU.
        traceback: show the whole traceback of an error instead of one line.
        plan_labeler: folder of the plan labeler that the method `plans/search` asks; null for the pretrained one.
        objective: dotted names in the final metrics that the run returns to a sweeper.
        job: what the run does.
        baselines: name -> criterion node, compared with the labeler at the same budget.
        oracles: name -> oracle node.
    """

    name: str = "run"
    seed: int = 0
    seeds: list[int] = field(default_factory=lambda: [0])
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
    baselines: dict[str, Any] = field(default_factory=dict)
    oracles: dict[str, Any] = field(default_factory=dict)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    constraints: ConstraintSettings = field(default_factory=ConstraintSettings)
    compare: CompareSettings = field(default_factory=CompareSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
