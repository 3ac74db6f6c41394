"""What a training run is made of."""

from dataclasses import dataclass
from typing import Literal, get_args

from nextvec.errors import SettingsError

ModelName = Literal["memory_gru", "gru", "lstm", "transformer", "mixture", "hierarchical", "linear", "experts", "published"]
Precision = Literal["float32", "bfloat16", "float16"]
MODEL_NAMES: tuple[str, ...] = get_args(ModelName)

RANDOM_LANES = 16  # what nextvec.models.experts hashes to

NO_FOLDER = ("clusters", "balanced", "descriptions", "random")

# The least and the most that each number may be; what is outside is refused with the nearest right value.
BOUNDS: dict[str, tuple[float, float]] = {
    "context": (1, 1_000_000),
    "batch": (1, 1_000_000),
    "accumulate": (1, 100_000),
    "updates": (1, 100_000_000),
    "seconds": (1, 1_000_000_000),
    "hidden": (1, 65_536),
    "layers": (1, 64),
    "slots": (0, 1_000_000),
    "working": (0, 1_000_000),
    "window": (1, 1_000_000),
    "chunk": (1, 1_000_000),
    "dropout": (0, 0.95),
    "experts": (1, 256),
    "expert_width": (1, 65_536),
    "common_width": (0, 65_536),
    "top": (1, 256),
    "balance": (0, 1_000),
    "router": (0, 0.9),
    "coherence": (-1, 1),
    "alpha": (0, 1_000_000),
    "cosine": (0, 1_000_000),
    "mse": (0, 1_000_000),
    "temperature": (1e-3, 1_000),
    "negatives": (0, 1_000_000),
    "queue": (0, 1_000_000),
    "hard": (0, 1_000),
    "hard_low": (-1, 1),
    "hard_high": (-1, 1),
    "mine_every": (1, 100_000_000),
    "lr": (1e-8, 10),
    "faster": (0.01, 1_000),
    "weight_decay": (0, 0.99),
    "warmup": (0, 100_000_000),
    "clip": (1e-6, 1_000_000_000),
    "ema": (0, 0.99999),
    "segment": (0, 1_000_000),
    "evaluate_every": (1, 100_000_000),
    "patience": (1, 1_000_000),
    "pool": (2, 1_000_000_000),
    "valid": (0.01, 0.9),
    "test": (0.01, 0.9),
    "seed": (0, 2**62),
    "threads": (1, 1_024),
}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Every choice of a run, resolved and written into it.

    Model:
        model: ``memory_gru`` (ours), one of its simpler kin, or ``published`` (the predecessor's).
        hidden, layers, slots, working, window, chunk, dropout: see the models;
            slots=0 or working=0 takes that memory away.

    Experts, of model ``experts``, the memory GRU of the same hidden, slots and working:
        experts: how many; 1 is a block that every position passes. expert_width: inner width of each;
        common_width: of a block that all share, 0 for none; narrow experts beside it are adapters.
        lanes: whose anchors route: ``clusters`` or ``balanced`` (k-means of the training rows),
            ``descriptions``, ``random`` (the control), or a folder of ``nextvec lanes BANK --out``.
        route_per: the lane of a ``position`` (the last few vectors) or of the ``document`` so far.
        gate_on: the ``lane``, the ``state`` of the GRU, or ``both``. top: experts heard at each position.
        constants: whether each also adds a vector of its own.
        balance: weight of Switch's load-balancing term.
        router: the last share of the updates, which train the gate alone, as those before leave it alone; 0: all in one go.

    Where it starts, any model:
        start: a trained run of the same sizes, whose weights are taken over; of the memory GRU, experts take them for
            what they share. Empty for none.
        only: a lane of the folder ``lanes``: documents that lie in another are neither trained on nor looked at, so that
            a whole model becomes an expert. Empty for all. The test documents stay those of all.

    Passages:
        context: vectors a training passage reads.
        supervision: ``every`` row after the first is a target, or only the
            ``last``, with passages that overlap by half (the predecessor's way).
        across: whether a passage may run on into the next training document.
        coherence: a passage is used only if the mean cosine of neighbours among
            what it *reads* is at least this; the target is never looked at.

    Objective:
        alpha, cosine, mse: weights of InfoNCE, of 1 - cosine, and of the squared
            distance. The squared distance is summed over the width: on unit
            vectors it is 2 (1 - cosine), whatever the width.
        loss_on: the next ``vector``, or the raw difference to the last one (``delta``).
        temperature: of InfoNCE; where it starts when ``learn_temperature``.

    Negatives of a target, beside the other targets of its batch:
        cached: whether the batch is the whole update's (gradient caching) or
            only the passages that fit at once.
        negatives: rows drawn from the training documents for each update.
        queue: targets of earlier updates that are kept as negatives.
        hard: rows mined for each target, with a cosine to it between
            ``hard_low`` and ``hard_high``; mined anew every ``mine_every`` updates.

    Updates:
        batch: passages computed at once; accumulate: how many such make an update.
        updates: at most; seconds: training ends at the first look after so many, of the
            processor where a processor computes, else of the wall.
        lr: peak rate of matrices; vectors and the trunk learn ``faster`` times as fast.
        warmup: updates of linear ramp; a cosine to 2 % follows.
        weight_decay: AdamW's, on matrices only. clip: largest gradient norm.
        ema: share of the averaged weights kept at each update; 0 for none.
        precision: number format of products. Where oneDNN has no bfloat16 LSTM (x86 without AVX-512), the cells of an
            LSTM are computed in float32. device: ``auto`` is the best there is.
        segment: positions between two gradient checkpoints; 0 for none.
        compile: whether the model goes through ``torch.compile``.

    Looks:
        evaluate_every: updates between looks at the valid exam; pool: its candidates, None for the whole bank.
        stop_on: what must become better within ``patience`` looks: Hit@5 by
            more than its ``interval`` allows for, plain ``hit@5``, or the ``cosine`` to the truth.

    Whole:
        valid, test: shares of rows held out. seed: of weights, order, dropout and sampled negatives.
        threads: of the processor; part of the settings because bits depend on it.
    """

    model: ModelName = "memory_gru"
    hidden: int = 64
    layers: int = 1
    slots: int = 2048
    working: int = 256
    window: int = 256
    chunk: int = 200
    dropout: float = 0.2

    experts: int = 16
    expert_width: int = 128
    common_width: int = 0
    lanes: str = "clusters"
    route_per: Literal["position", "document"] = "position"
    gate_on: Literal["lane", "state", "both"] = "lane"
    top: int = 1
    constants: bool = False
    balance: float = 0.0
    router: float = 0.0

    start: str = ""
    only: str = ""

    context: int = 256
    supervision: Literal["every", "last"] = "every"
    across: bool = False
    coherence: float = -1.0

    alpha: float = 1.0
    cosine: float = 0.0
    mse: float = 0.0
    loss_on: Literal["vector", "delta"] = "vector"
    temperature: float = 0.07
    learn_temperature: bool = True

    cached: bool = True
    negatives: int = 0
    queue: int = 0
    hard: int = 0
    hard_low: float = 0.75
    hard_high: float = 0.90
    mine_every: int = 50

    batch: int = 4
    accumulate: int = 1
    updates: int = 200
    seconds: float | None = None
    lr: float = 1e-3
    faster: float = 5.0
    warmup: int = 20
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.0
    precision: Precision = "float32"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    segment: int = 0
    compile: bool = False

    evaluate_every: int = 20
    stop_on: Literal["interval", "hit@5", "cosine"] = "interval"
    patience: int = 8
    pool: int | None = 1000

    valid: float = 0.15
    test: float = 0.2
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                nearest = most if value > most else least
                raise SettingsError(
                    f"{name}={value}: must be between {least:,} and {most:,}; the nearest right one is {nearest:g}"
                )
        if self.valid + self.test >= 1:
            raise SettingsError(f"valid={self.valid} and test={self.test} leave nothing to train on; together below 1")
        if self.hard_low >= self.hard_high:
            raise SettingsError(f"hard_low={self.hard_low}: must be below hard_high={self.hard_high}")
        if not (self.alpha or self.cosine or self.mse):
            raise SettingsError("alpha, cosine and mse are all 0; training would minimise nothing")
        if self.model == "experts":
            self._check_experts()
        if self.only and self.lanes in NO_FOLDER:
            raise SettingsError(f"only={self.only}: needs lanes=FOLDER, of nextvec lanes BANK --out FOLDER, that names it")
        if self.loss_on == "delta" and self.model != "published":
            raise SettingsError(f"loss_on=delta: {self.model} predicts no difference; only model=published does")
        if self.precision == "float16" and self.device == "cpu":
            raise SettingsError("precision=float16: too narrow to train in on a processor; the nearest right one is bfloat16")
        if self.supervision == "last" and self.context < 2:
            raise SettingsError(f"context={self.context}: passages that overlap by half need at least 2")

    def _check_experts(self) -> None:
        if self.top > self.experts:
            raise SettingsError(f"top={self.top}: there are {self.experts} experts; the nearest right one is {self.experts}")
        if self.lanes == "random" and self.experts not in (1, RANDOM_LANES):
            raise SettingsError(f"experts={self.experts}: random lanes are {RANDOM_LANES}; the nearest right one is that")
        if self.router and self.gate_on == "lane":
            raise SettingsError("router: a gate on the lane alone has one number to train; choose gate_on=both or state")
        if self.router and self.seconds:
            raise SettingsError("router counts updates, and seconds may end them sooner; choose one")
        if self.balance and self.segment:
            raise SettingsError("balance needs a whole passage, segment cuts it; choose one")
