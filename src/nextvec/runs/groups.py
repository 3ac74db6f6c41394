"""The groups of training settings that every model reads; each is a frozen dataclass whose fields declare their bounds."""

from dataclasses import dataclass
from typing import Literal

from nextvec.errors import SettingsError
from nextvec.settings import bounded, check_bounds

Precision = Literal["float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Settings that belong together. Creating one checks every bounded field.

    Raises:
        SettingsError: a value outside its bounds; the message names the nearest valid value.
    """

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class SourceSettings(Group):
    """The initial weights and the documents that training uses.

    Attributes:
        start: path of a trained run of the same sizes whose weights training starts from, or ``shipped`` for the weights of
            the package, which are of the model ``pooled`` in a fitted space; empty for new weights.
            Experts take the weights of a memory GRU for the part that all experts share.
        lane_folder: a folder of ``nextvec lanes BANK --out FOLDER``; read only with ``lane_filter``.
        lane_filter: a lane of ``lane_folder``. Training and validation use only the documents of this lane, which makes
            the whole model an expert for it. The test documents are those of all lanes. Empty for all lanes.
    """

    start: str = ""
    lane_folder: str = ""
    lane_filter: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lane_filter and not self.lane_folder:
            raise SettingsError(f"lane_filter={self.lane_filter}: needs lane_folder=FOLDER, of nextvec lanes BANK --out FOLDER")
        if self.lane_folder and not self.lane_filter:
            raise SettingsError(f"lane_folder={self.lane_folder}: needs lane_filter=LANE, a lane of this folder")


@dataclass(frozen=True, kw_only=True)
class SpaceSettings(Group):
    """The space in which the model reads the context and ranks candidates.

    Attributes:
        space: ``raw`` rows, or a space ``fitted`` to the training rows (:class:`~nextvec.models.space.Space`).
        power: of the fitted space: 0 centres the rows, 1 whitens them. None takes 0.5, or another of 0, 0.25 and 0.75 that is
            surely better on all documents but those of the test, each read in a space that was fitted without it.
        folds: of the training documents. Each is read in a space that was fitted on the others; with 1 in the model's own.
    """

    space: Literal["raw", "fitted"] = "raw"
    power: float | None = bounded(None, 0, 1)
    folds: int = bounded(4, 1, 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.space == "raw" and self.power is not None:
            raise SettingsError(f"power={self.power:g}: read only with space=fitted")


@dataclass(frozen=True, kw_only=True)
class PassageSettings(Group):
    """How training documents are cut into passages.

    Attributes:
        context: vectors that a passage reads.
        supervision: ``every`` row after the first is a target, or only the ``last``, with passages that overlap by half.
        across: whether a passage may continue into the next training document; read only with ``supervision=last``.
        coherence: a passage is used only if the mean cosine of neighbouring input vectors is at least this. The target is
            not part of the mean. -1 uses all passages.
        targets: rows of a passage that are scored in an update, drawn anew each time; 0 scores all.
    """

    context: int = bounded(256, 1, 1_000_000)
    supervision: Literal["every", "last"] = "every"
    across: bool = False
    coherence: float = bounded(-1.0, -1, 1)
    targets: int = bounded(0, 0, 1_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.supervision == "last" and self.context < 2:
            raise SettingsError(f"context={self.context}: passages that overlap by half need at least 2")


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(Group):
    """The loss: a weighted sum of InfoNCE, the cosine distance and the squared distance.

    Attributes:
        alpha: weight of InfoNCE.
        misses: weight of the smooth share of misses among the first five of 1,000 (:func:`~nextvec.objective.smooth_misses`).
        cosine: weight of 1 - cosine.
        mse: weight of the squared distance, summed over the width: on unit vectors it is 2 (1 - cosine) at any width.
        loss_on: the next ``vector``, or its raw difference to the last one (``delta``), which only some models predict.
        temperature: of InfoNCE; the initial value if ``learn_temperature``.
        learn_temperature: whether the temperature is a trained parameter.
    """

    alpha: float = bounded(1.0, 0, 1_000_000)
    misses: float = bounded(0.0, 0, 1_000_000)
    cosine: float = bounded(0.0, 0, 1_000_000)
    mse: float = bounded(0.0, 0, 1_000_000)
    loss_on: Literal["vector", "delta"] = "vector"
    temperature: float = bounded(0.07, 1e-3, 1_000)
    learn_temperature: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.alpha or self.misses or self.cosine or self.mse):
            raise SettingsError("alpha, misses, cosine and mse are all 0; training would minimise nothing")


@dataclass(frozen=True, kw_only=True)
class NegativeSettings(Group):
    """The negatives of a target, in addition to the other targets of its batch.

    Attributes:
        cached: whether the batch is that of the whole update (gradient caching) or only the passages computed at once.
        in_batch: whether the other targets of the batch are negatives. They are neighbours of the target more often than the
            candidates of an exam.
        negatives: rows drawn from the training documents for each update.
        queue: targets of earlier updates that are kept as negatives.
        hard: rows mined for each target.
        hard_low, hard_high: range of the cosine between a target and its mined rows.
        mine_every: updates between two rounds of mining.
    """

    cached: bool = True
    in_batch: bool = True
    negatives: int = bounded(0, 0, 1_000_000)
    queue: int = bounded(0, 0, 1_000_000)
    hard: int = bounded(0, 0, 1_000)
    hard_low: float = bounded(0.75, -1, 1)
    hard_high: float = bounded(0.90, -1, 1)
    mine_every: int = bounded(50, 1, 100_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hard_low >= self.hard_high:
            raise SettingsError(f"hard_low={self.hard_low}: must be below hard_high={self.hard_high}")
        if not (self.in_batch or self.negatives or self.queue or self.hard):
            raise SettingsError("in_batch=false: negatives, queue and hard are all 0; no target would have a negative")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Group):
    """The updates: size, number, learning rate and regularisation.

    Attributes:
        batch: passages computed at once.
        accumulate: batches per update.
        updates: updates at most.
        seconds: training ends at the first validation after this time; None for no limit. Processor time if the model
            computes on the processor, else wall time.
        lr: peak learning rate of matrices. A linear warm-up and a cosine to 2 % of the peak shape it.
        vector_lr_multiplier: learning rate of vectors, scalars and the trunk, as a multiple of ``lr``.
        warmup: updates of linear warm-up.
        weight_decay: of AdamW, on matrices only.
        clip: largest gradient norm.
        ema: decay of the exponential moving average of the weights per update; 0 for no average.
    """

    batch: int = bounded(4, 1, 1_000_000)
    accumulate: int = bounded(1, 1, 100_000)
    updates: int = bounded(200, 1, 100_000_000)
    seconds: float | None = bounded(None, 1, 1_000_000_000)
    lr: float = bounded(1e-3, 1e-8, 10)
    vector_lr_multiplier: float = bounded(5.0, 0.01, 1_000)
    warmup: int = bounded(20, 0, 100_000_000)
    weight_decay: float = bounded(0.01, 0, 0.99)
    clip: float = bounded(1.0, 1e-6, 1_000_000_000)
    ema: float = bounded(0.0, 0, 0.99999)


@dataclass(frozen=True, kw_only=True)
class ComputeSettings(Group):
    """How the updates are computed.

    Attributes:
        precision: number format of matrix products. Where oneDNN has no bfloat16 LSTM (x86 without AVX-512), the cells of
            an LSTM are computed in float32.
        device: ``auto`` is an accelerator if there is one, else the processor.
        segment: positions between two gradient checkpoints; 0 for no checkpoints.
        compile: whether the model is compiled by ``torch.compile``.
        threads: of the processor. The number is a setting because results depend on it, bit for bit.
    """

    precision: Precision = "float32"
    device: Device = "auto"
    segment: int = bounded(0, 0, 1_000_000)
    compile: bool = False
    threads: int = bounded(1, 1, 1_024)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision == "float16" and self.device == "cpu":
            raise SettingsError("precision=float16: too narrow to train in on a processor; the nearest right one is bfloat16")


@dataclass(frozen=True, kw_only=True)
class ValidationSettings(Group):
    """When the valid exam is evaluated and when training stops early.

    Attributes:
        evaluate_every: updates between two validations.
        stop_on: what must improve within ``patience`` validations: Hit@5 by more than the 95 % ``interval`` of the paired
            difference, Hit@5 by any amount (``hit@5``), or the mean ``cosine`` to the truth.
        patience: validations without such an improvement before training stops.
        pool: candidates of each row of the valid exam; None for all vectors of the bank.
    """

    evaluate_every: int = bounded(20, 1, 100_000_000)
    stop_on: Literal["interval", "hit@5", "cosine"] = "interval"
    patience: int = bounded(8, 1, 1_000_000)
    pool: int | None = bounded(1000, 2, 1_000_000_000)


@dataclass(frozen=True, kw_only=True)
class SplitSettings(Group):
    """The held-out documents.

    Attributes:
        valid: share of the rows in the valid documents.
        test: share of the rows in the test documents.
    """

    valid: float = bounded(0.15, 0.01, 0.9)
    test: float = bounded(0.2, 0.01, 0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.valid + self.test >= 1:
            raise SettingsError(f"valid={self.valid} and test={self.test} leave nothing to train on; together below 1")
