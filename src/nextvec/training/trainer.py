"""train(): a generator of events. It writes the run as it goes and can be killed at any moment."""

# Axes: B passages, T positions, N scored rows, D width.

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from nextvec.bank import Bank, row_classes
from nextvec.batches import candidates, passages
from nextvec.errors import RunError
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.evaluation.report import HITS, strongest_decay
from nextvec.models import GRU, MemoryGRU, PublishedMemoryGRU, Recurrent
from nextvec.objective import info_nce, negative_counts
from nextvec.training.run import BEST, CHECKPOINT, RUN, Origin, Run, document_sketch, generator_seed
from nextvec.training.settings import TrainSettings
from nextvec.windows import Split, Windows, rows_of, split, training_windows

FASTER = 5.0
FLOOR = 0.02
VALID_ROWS = 1000
ORDER, DROPOUT, NEGATIVES = 1, 2, 3
FINAL = ("updates used up", "no better for {} looks")


@dataclass(frozen=True)
class Stepped:
    """One update was made."""

    update: int
    updates: int
    loss: float


@dataclass(frozen=True)
class Evaluated:
    """The valid exam was sat.

    Attributes:
        record: what the history keeps: update, loss, gradient norm, learning
            rate, temperature, negatives per target, Hit@1/5/10 on valid.
        best: whether no look before was as good.
    """

    update: int
    record: dict[str, Any]
    best: bool


@dataclass(frozen=True)
class Finished:
    """Training ended, and why."""

    update: int
    reason: str


Event = Stepped | Evaluated | Finished


def begin(path: str | Path, recipe: str, settings: TrainSettings, bank: Bank) -> Run:
    """Create a run on a bank, or open it again: splits the bank and finds where training starts.

    Raises:
        RunError: the path holds something else.
        DataError: the bank cannot be split.
        ExamError: it is too small to hold an exam.
    """
    if (Path(path) / RUN).exists():
        return Run.open(path).begun_with(settings, bank)
    parts = split(bank, settings.valid, settings.test)
    exam = Exam.over(bank, parts.train, "train", settings.pool, VALID_ROWS)
    for part in ("valid", "test"):
        Exam.over(bank, parts.part(part), part, settings.pool, VALID_ROWS)
    decay = strongest_decay(exam, centre_of(bank, parts.train))
    ids = bank.ids
    named = {name: [ids[m] for m in parts.part(name)] for name in ("train", "valid", "test")}
    hashes = [document_sketch(bank, int(m)) for m in parts.train]
    where = str(bank.path.resolve()) if bank.path else ""
    origin = Origin(bank.fingerprint, where, bank.dim, bank.manifest.encoder_fingerprint, named, hashes, decay)
    return Run.create(path, recipe, settings, origin)


def centre_of(bank: Bank, documents: Int64[np.ndarray, " M"]) -> Tensor:
    """Mean row of some documents, [D] float32."""
    total = np.zeros(bank.dim, dtype=np.float64)
    for m in documents:
        total += bank.document(int(m)).astype(np.float64).sum(0)
    return torch.from_numpy((total / max(1, int(bank.lengths[documents].sum()))).astype(np.float32))


def build(settings: TrainSettings, centre: Tensor, decay: float) -> Recurrent[Any]:
    """The untrained model of some settings; its weights are decided by ``settings.seed``."""
    torch.manual_seed(settings.seed)
    match settings.model:
        case "memory_gru":
            return MemoryGRU(centre, decay, settings.hidden, settings.slots, settings.working, settings.dropout)
        case "gru":
            return GRU(centre, decay, settings.hidden, settings.layers, settings.dropout)
        case "published":
            return PublishedMemoryGRU(len(centre), settings.hidden, settings.layers, settings.slots or 1, settings.dropout)


def load_model(run: Run, name: str = BEST) -> tuple[Recurrent[Any], Tensor]:
    """The trained model of a run, in evaluation mode, and the mean of its training rows.

    Raises:
        RunError: it was never trained, or its weights do not fit its settings.
    """
    tensors, _ = run.load(name)
    centre = tensors.pop("centre")
    tensors.pop("log_temperature", None)
    model = build(run.settings, centre, run.origin.decay)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(f"{run.path / name} does not fit the run's settings: {str(error).splitlines()[0]}") from None
    return model.eval(), centre


class _Training:
    """Everything that changes from update to update, and how it is written down."""

    def __init__(self, run: Run, bank: Bank, split: Split) -> None:
        self.run, self.bank, self.split, self.settings = run, bank, split, run.settings
        self.centre = centre_of(bank, split.train)
        self.model = build(self.settings, self.centre, run.origin.decay)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(self.settings.temperature)))
        self.classes = row_classes(bank.rows)
        self.train_rows = rows_of(bank, split.train)
        self.exam = Exam.over(bank, split.valid, "valid", self.settings.pool, VALID_ROWS)
        self.optimizer = self._optimizer()
        self.update = 0
        self.evaluations: list[dict[str, Any]] = []
        self.loss_sum, self.loss_count, self.grad_norm, self.negatives = 0.0, 0, 0.0, 0.0
        self._epoch = -1
        self._windows: Windows | None = None
        self._edges: list[int] = []

    def step(self) -> float:
        """One update; a function of the settings, the data and the number of the update."""
        s = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = s.lr * group["factor"] * _schedule(self.update, s)
        batch = passages(self.bank, *self._batch(self.update))
        rng = np.random.default_rng(generator_seed(s.seed, NEGATIVES, self.update))
        torch.manual_seed(generator_seed(s.seed, DROPOUT, self.update))
        scored = batch.targets >= 0
        rows = batch.targets[scored].numpy()
        named = candidates(self.bank, self.classes, rows, rng.choice(self.train_rows, s.negatives))
        predicted = self.model(batch.x)[scored]
        loss = info_nce(predicted, named.vectors, named.truth, named.forbidden, self.log_temperature.exp())
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_([*self.model.parameters(), self.log_temperature], s.clip)
        if not torch.isfinite(norm):
            raise RunError(f"update {self.update}: the gradient is not finite; lower lr (now {s.lr}) or clip (now {s.clip})")
        self.optimizer.step()
        if isinstance(self.model, PublishedMemoryGRU):
            self.model.remember(batch.x)
        self.update += 1
        self.loss_sum, self.loss_count = self.loss_sum + loss.item(), self.loss_count + 1
        self.grad_norm = float(norm)
        self.negatives = float(negative_counts(named.forbidden).double().mean())
        return loss.item()

    def evaluate(self) -> bool:
        """Sit the valid exam, record it, save what a resumed run needs; whether this is a new best."""
        ranks = self.exam.rank(predict_rows(self.model, self.bank, self.exam.rows, None))
        record: dict[str, Any] = {
            "update": self.update,
            "loss": self.loss_sum / self.loss_count if self.loss_count else None,
            "grad_norm": self.grad_norm,
            "lr": self.settings.lr * _schedule(max(0, self.update - 1), self.settings),
            "temperature": float(self.log_temperature.detach().exp()),
            "negatives_per_target": self.negatives,
            "valid": {f"hit@{k}": float(ranks.hits(k).mean()) for k in HITS},
        }
        self.loss_sum, self.loss_count = 0.0, 0
        best = all(e["valid"]["hit@5"] < record["valid"]["hit@5"] for e in self.evaluations)
        self.evaluations.append(record)
        if best:
            weights = {**self.model.state_dict(), "centre": self.centre, "log_temperature": self.log_temperature}
            self.run.save(BEST, weights, self.update)
        self.run.record(self.evaluations, None)
        self.run.save(CHECKPOINT, self._state(), self.update)
        return best

    def looks_since_best(self) -> int:
        hits = [e["valid"]["hit@5"] for e in self.evaluations]
        return len(hits) - 1 - hits.index(max(hits))

    def resume(self) -> bool:
        """Go on from the last checkpoint; whether there was one."""
        if not (self.run.path / CHECKPOINT).exists():
            return False
        tensors, self.update = self.run.load(CHECKPOINT)
        self.evaluations = [e for e in self.run.history() if e["update"] <= self.update]
        self.log_temperature.data = tensors.pop("log_temperature")
        self.grad_norm, self.negatives = self.evaluations[-1]["grad_norm"], self.evaluations[-1]["negatives_per_target"]
        moments = {key: tensors.pop(key) for key in list(tensors) if key.startswith("adam.")}
        self.model.load_state_dict(tensors)
        for n, parameter in enumerate(self._parameters()):
            if f"adam.{n}.step" in moments:
                self.optimizer.state[parameter] = {key: moments[f"adam.{n}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        return True

    def _state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {**self.model.state_dict(), "log_temperature": self.log_temperature}
        for n, parameter in enumerate(self._parameters()):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"adam.{n}.{key}"] = value
        return state

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _optimizer(self) -> torch.optim.AdamW:
        """Matrices decay and learn at ``lr``; vectors, scalars and the trunk do neither: few, and shared by all content."""
        named = dict(self.model.named_parameters())
        quick = [p for name, p in named.items() if p.ndim < 2 or name.startswith(("trunk.", "recall_weights"))]
        slow = [p for p in named.values() if not any(p is q for q in quick)]
        groups = [
            {"params": slow, "factor": 1.0, "weight_decay": self.settings.weight_decay},
            {"params": [*quick, self.log_temperature], "factor": FASTER, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98))

    def _batch(self, update: int) -> tuple[Windows, Int64[np.ndarray, " B"]]:
        """Which passages an update reads: epochs of shuffled windows, end to end."""
        while self._windows is None or update >= self._edges[-1]:
            self._epoch += 1
            rng = np.random.default_rng(generator_seed(self.settings.seed, ORDER, self._epoch))
            self._windows = training_windows(self.bank, self.split.train, self.settings.context, rng)
            whole = max(1, len(self._windows) // self.settings.batch)
            self._edges.append((self._edges[-1] if self._edges else 0) + whole)
        begun = self._edges[-2] if len(self._edges) > 1 else 0
        first = (update - begun) * self.settings.batch
        return self._windows, np.arange(first, min(first + self.settings.batch, len(self._windows)))


def train(run: Run, bank: Bank) -> Iterator[Event]:
    """Train a run, from its last checkpoint if it has one, and yield what happens.

    The history and all weights are a function of settings and data: a run that
    was killed and resumed equals one that was not, bit for bit.

    Raises:
        RunError: another process is training it, another bank, or a gradient that is not finite.
    """
    with run.training():
        threads = torch.get_num_threads()
        torch.set_num_threads(run.settings.threads)
        try:
            yield from _events(run, bank, run.split(bank))
        finally:
            torch.set_num_threads(threads)


def _events(run: Run, bank: Bank, parts: Split) -> Iterator[Event]:
    settings = run.settings
    if run.finished:
        yield Finished(run.history()[-1]["update"], run.finished)
        return
    training = _Training(run, bank, parts)
    before, began = run.seconds(), time.monotonic()
    if not training.resume():
        best = training.evaluate()  # update 0 is the baseline: training has to beat it
        yield Evaluated(0, training.evaluations[-1], best)
    training.model.train()
    while training.update < settings.updates and training.looks_since_best() < settings.patience:
        loss = training.step()
        yield Stepped(training.update, settings.updates, loss)
        if training.update % settings.evaluate_every == 0 or training.update == settings.updates:
            best = training.evaluate()
            run.record_seconds(before + time.monotonic() - began)
            yield Evaluated(training.update, training.evaluations[-1], best)
    reason = FINAL[0] if training.update >= settings.updates else FINAL[1].format(settings.patience)
    run.record(training.evaluations, reason)
    yield Finished(training.update, reason)


def _schedule(update: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine to ``FLOOR``, as a factor of the peak learning rate."""
    if update < settings.warmup:
        return (update + 1) / settings.warmup
    done = (update - settings.warmup) / max(1, settings.updates - settings.warmup)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
