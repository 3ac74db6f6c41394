"""train(): a generator of events. It writes the run as it goes and can be killed at any moment."""

# Axes: B passages, N scored rows, D width.

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from nextvec.bank import Bank
from nextvec.errors import RunError
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.evaluation.report import HITS
from nextvec.models import PublishedMemoryGRU
from nextvec.negatives import Mined, Queue, mine
from nextvec.ranks import Ranks, paired_lift
from nextvec.runs.loading import build
from nextvec.runs.run import BEST, CHECKPOINT, START, Run, generator_seed
from nextvec.runs.settings import TrainSettings
from nextvec.training.alarms import NOT_FINITE, REMEMBERED, collapse, explosion, few_updates, small_exam
from nextvec.training.begin import VALID_ROWS, anchors_of, centre_of, epoch, present, take_over
from nextvec.training.gradient import Computed, Gradient
from nextvec.training.support import check_computes
from nextvec.windows import Split, Windows, rows_of

FLOOR = 0.02
GATE = "gate."
ORDER, MINING = 1, 4
MINED_TARGETS = 4096
USED_UP, OUT_OF_TIME, PATIENCE = "updates used up", "seconds used up", "no better for {} looks"


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
        record: what the history keeps: update, loss, value and gradient norm of
            each of its terms (none of the experts' balance, which pulls at the
            gate), gradient norm, learning rate, temperature, negatives per
            target, Hit@1/5/10 and cosine on valid, variety of the predictions,
            alarms.
        best: whether no look before was as good.
    """

    update: int
    record: dict[str, Any]
    best: bool


@dataclass(frozen=True)
class Alarmed:
    """Something makes this run's figures doubtful."""

    update: int
    alarm: str


@dataclass(frozen=True)
class Finished:
    """Training ended, and why."""

    update: int
    reason: str


Event = Stepped | Evaluated | Alarmed | Finished


def train(run: Run, bank: Bank) -> Generator[Event]:
    """Train a run, from its last checkpoint if it has one, and yield what happens.

    The history and all weights are a function of settings and data: a run that
    was killed and resumed equals one that was not, bit for bit, on a processor.
    (Not with ``seconds``, which asks the clock.)

    Raises:
        RunError: another process is training it, another bank, or a gradient that is not finite.
        SettingsError: the run was begun on another machine, and this one does not compute it.
    """
    with run.training():
        threads = torch.get_num_threads()
        torch.set_num_threads(run.settings.threads)
        try:
            yield from _events(run, bank, run.split(bank))
        finally:
            torch.set_num_threads(threads)


def _events(run: Run, bank: Bank, parts: Split) -> Generator[Event]:
    settings = run.settings
    if run.finished:
        yield Finished(run.history()[-1]["update"], run.finished)
        return
    training = _Training(run, bank, parts)
    if not training.resume():
        yield from training.look()  # update 0 is the baseline: training has to beat it
    training.model.train()
    while (ended := training.ended()) is None:
        loss = training.step()
        yield Stepped(training.update, settings.updates, loss)
        if training.update % settings.evaluate_every == 0 or training.update == settings.updates:
            yield from training.look()
    yield from training.finish(ended)


class _Training:
    """Everything that changes from update to update, and how it is written down."""

    def __init__(self, run: Run, bank: Bank, split: Split) -> None:
        self.run, self.bank, self.split, self.settings = run, bank, split, run.settings
        s = self.settings
        self.centre = centre_of(bank, split.train)
        anchors = run.anchors() or anchors_of(s, bank, split.train)
        self.model = build(s, self.centre, run.origin.decay, anchors).to(present(s.device))
        start = torch.tensor(math.log(s.temperature), device=s.device)
        check_computes(self.model, s, bank.dim)
        if s.start:
            tensors, _ = run.load(START)
            take_over(self.model, tensors, s.start)
            start.copy_(tensors["log_temperature"])
        self.log_temperature = nn.Parameter(start, requires_grad=s.learn_temperature)
        self.exam = Exam.over(bank, split.valid, "valid", s.pool, VALID_ROWS)
        self.optimizer = _optimizer(self.model, self.log_temperature, s)
        self.scaler = torch.amp.GradScaler(s.device, enabled=s.precision == "float16")
        train_rows = rows_of(bank, split.train)
        self.gradient = Gradient(self.model, self.log_temperature, bank, train_rows, s, self.scaler.scale)
        self.averaged = [p.detach().clone() for p in self.model.parameters()] if s.ema else []
        self.queue, self.mined = Queue.empty(s.queue), Mined.none(s.hard)
        self.update = 0
        self.records: list[dict[str, Any]] = []
        self.clock: list[tuple[int, float, float]] = []
        self.began, self.before = _clocks(s.device), (0.0, 0.0)
        self.reference: Ranks | None = None
        self.norms: list[float] = []
        self.losses: list[float] = []
        self.raised: list[str] = []
        self.computed: Computed | None = None
        self._epoch, self._windows, self._edges = -1, Windows.none(), [0]

    def ended(self) -> str | None:
        """Why training is over, if it is."""
        if self.update >= self.settings.updates:
            return USED_UP
        at_a_look = self.update == self.records[-1]["update"]
        if at_a_look and self.settings.seconds and self.clock[-1][1] >= self.settings.seconds:  # as it is recorded
            return OUT_OF_TIME
        if self.settings.router and self.update <= self._experts_until():
            return None  # the router is still to come
        progress = max(n for n, record in enumerate(self.records) if record["progress"])
        return PATIENCE.format(self.settings.patience) if len(self.records) - 1 - progress >= self.settings.patience else None

    def seconds(self) -> float:
        """Time spent training so far, over all sittings."""
        return self._spent()[0]

    def _spent(self) -> tuple[float, float]:
        (seconds, wall), began, before = _clocks(self.settings.device), self.began, self.before
        return before[0] + seconds - began[0], before[1] + wall - began[1]

    def step(self) -> float:
        """One update; a function of the settings, the data and the number of the update."""
        s = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = s.lr * group["factor"] * self._schedule(self.update)
        windows, chosen = self._passages(self.update)
        if s.hard and self.update % s.mine_every == 0:
            self.mined = self._mine(windows)
        others = np.concatenate([self.queue.rows, self.mined.of(windows.rows(chosen))])
        self.optimizer.zero_grad()
        measure = (self.update + 1) % s.evaluate_every == 0 or self.update + 1 == s.updates
        self.computed = self.gradient.compute(self.update, windows, chosen, others, measure)
        for parameter in self._resting():
            parameter.grad = None
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(_parameters(self.optimizer), s.clip))
        self._watch(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for average, parameter in zip(self.averaged, self.model.parameters(), strict=bool(self.averaged)):
            average.lerp_(parameter.detach(), 1 - s.ema)
        if isinstance(self.model, PublishedMemoryGRU):
            rows = self.bank.rows[windows.starts[chosen[-1]] : windows.stops[chosen[-1]] - 1]
            self.model.remember(torch.from_numpy(np.array(rows, np.float32))[None].to(s.device))
        self.queue = self.queue.push(self.computed.targets)
        self.update += 1
        self.losses.append(self.computed.loss)
        return self.computed.loss

    def _resting(self) -> list[Tensor]:
        """What this update leaves alone where a router is trained after its experts."""
        s = self.settings
        if not s.router:
            return []
        gate: list[Tensor] = [parameter for name, parameter in self.model.named_parameters() if name.startswith(GATE)]
        if self.update < self._experts_until():
            return gate
        return [p for p in _parameters(self.optimizer) if not any(p is q for q in gate)]

    def _experts_until(self) -> int:
        return round((1 - self.settings.router) * self.settings.updates)

    def look(self) -> Iterator[Event]:
        """Sit the valid exam, record it, save what a resumed run needs."""
        before, alarms = len(self.records), self.raised
        weights = self._averaged_state() if self.averaged else self.model.state_dict()
        record, ranks = self._examined(weights)
        if before == 0 and (alarm := small_exam(len(self.exam.rows), len(np.unique(self.exam.clusters)))):
            alarms = [*alarms, alarm]
        known = {alarm.split(":")[0] for r in self.records for alarm in r["alarms"]}
        named = {alarm.split(":")[0]: alarm for alarm in reversed([*alarms, *record["alarms"]])}  # the first of each name
        record["alarms"] = [alarm for name, alarm in reversed(named.items()) if name not in known]
        self._judge(record, ranks)
        self.records.append(record)
        self.losses, self.raised = [], []
        if record["best"]:
            held = {**weights, "centre": self.centre, "log_temperature": self.log_temperature}
            self.run.save(BEST, held, self.update)
        self._record(None)
        self.run.save(CHECKPOINT, self._state(), self.update)
        seconds, wall = self._spent()
        self.clock.append((self.update, round(seconds, 3), round(wall, 3)))
        self.run.record_clock(self.clock)
        yield Evaluated(self.update, record, record["best"])
        yield from (Alarmed(self.update, alarm) for alarm in record["alarms"])

    def finish(self, reason: str) -> Iterator[Event]:
        """Write down why training ended."""
        if alarm := few_updates(self.update):
            self.records[-1]["alarms"].append(alarm)
            yield Alarmed(self.update, alarm)
        self._record(reason)
        yield Finished(self.update, reason)

    def resume(self) -> bool:
        """Go on from the last checkpoint; whether there was one."""
        if not (self.run.path / CHECKPOINT).exists():
            return False
        tensors, self.update = self.run.load(CHECKPOINT)
        self.records = [e for e in self.run.history() if e["update"] <= self.update]
        self.clock = [look for look in self.run.looks() if look[0] <= self.update]
        self.before = self.clock[-1][1:] if self.clock else (0.0, 0.0)
        self.log_temperature.data = tensors.pop("log_temperature").to(self.settings.device)
        self.norms = tensors.pop("norms").tolist()
        self.queue = Queue(tensors.pop("queue").numpy(), self.settings.queue)
        self.mined = Mined(tensors.pop("mined.targets").numpy(), tensors.pop("mined.negatives").numpy())
        clusters, candidates = self.exam.clusters, tensors.pop("reference.candidates").numpy()
        above, tied = (tensors.pop(f"reference.{name}").numpy() for name in ("above", "tied"))
        self.reference = Ranks(above, tied, candidates, clusters)
        if "scaler.scale" in tensors:
            scale, growth = float(tensors.pop("scaler.scale")), int(tensors.pop("scaler.growth"))
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": growth})
        for n, average in enumerate(self.averaged):
            average.copy_(tensors.pop(f"ema.{n}"))
        moments = {key: tensors.pop(key) for key in list(tensors) if key.startswith("adam.")}
        self.model.load_state_dict(tensors)
        for n, parameter in enumerate(_parameters(self.optimizer)):
            if f"adam.{n}.step" in moments:
                state = {key: moments[f"adam.{n}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {
                    k: v if k == "step" else v.to(self.settings.device) for k, v in state.items()
                }
        return True

    def _state(self) -> dict[str, Tensor]:
        """Every tensor that :meth:`resume` needs."""
        assert self.reference is not None
        state: dict[str, Tensor] = {**self.model.state_dict(), "log_temperature": self.log_temperature}
        state["norms"] = torch.tensor(self.norms, dtype=torch.float64)
        state |= {"queue": torch.from_numpy(self.queue.rows)}
        state |= {f"mined.{name}": torch.from_numpy(getattr(self.mined, name)) for name in ("targets", "negatives")}
        kept = ("above", "tied", "candidates")
        state |= {f"reference.{name}": torch.from_numpy(getattr(self.reference, name)) for name in kept}
        if self.scaler.is_enabled():
            scaler = self.scaler.state_dict()
            state |= {"scaler.scale": torch.tensor(scaler["scale"]), "scaler.growth": torch.tensor(scaler["_growth_tracker"])}
        state |= {f"ema.{n}": average for n, average in enumerate(self.averaged)}
        for n, parameter in enumerate(_parameters(self.optimizer)):
            state |= {f"adam.{n}.{key}": value for key, value in self.optimizer.state.get(parameter, {}).items()}
        return state

    def _record(self, finished: str | None, alarms: tuple[str, ...] = ()) -> None:
        self.run.record(self.records, finished, [a for record in self.records for a in record["alarms"]] + list(alarms))

    def _examined(self, weights: dict[str, Tensor]) -> tuple[dict[str, Any], Ranks]:
        """The valid exam with these weights, and what led there."""
        now = {name: tensor.clone() for name, tensor in self.model.state_dict().items()} if self.averaged else None
        if now is not None:
            self.model.load_state_dict(weights)
        predicted = predict_rows(self.model, self.bank, self.exam.rows, None)
        if now is not None:
            self.model.load_state_dict(now)
        ranks, truths = self.exam.rank(predicted), self.exam.truths()
        varied, hit5, done = collapse(predicted, truths), ranks.hit(5), self.computed
        valid = {f"hit@{k}": float(ranks.hits(k).mean()) for k in HITS}
        valid |= {"low": hit5.low, "high": hit5.high, "cosine": float((predicted * truths).sum(1).mean())}
        return {
            "update": self.update,
            "loss": float(np.mean(self.losses)) if self.losses else None,
            "terms": {n: {"value": v, "gradient": done.pulls.get(n)} for n, v in done.terms.items()} if done else {},
            "grad_norm": self.norms[-1] if self.norms else None,
            "lr": self.settings.lr * self._schedule(max(0, self.update - 1)),
            "temperature": float(self.log_temperature.detach().exp()),
            "negatives_per_target": done.negatives if done else None,
            "mined_per_target": self.mined.found,
            "valid": valid,
            "collapse": {"effective_rank": varied.effective_rank, "mean_cosine": varied.mean_cosine, "hubness": varied.hubness},
            "alarms": [varied.alarm] if varied.alarm else [],
        }, ranks

    def _judge(self, record: dict[str, Any], ranks: Ranks) -> None:
        """Whether this look's weights are kept (``best``), and whether it gives training its patience back (``progress``).

        Under ``interval`` only a gain that the exam can tell from none is
        progress: one over the last such look, paired by row, whose 95 % interval
        lies above 0. Weights are kept for any gain: the better guess is the better guess.
        """
        judged = "cosine" if self.settings.stop_on == "cosine" else "hit@5"
        record["best"] = record["progress"] = all(look["valid"][judged] < record["valid"][judged] for look in self.records)
        if self.settings.stop_on == "interval" and self.reference is not None:
            record["progress"] = paired_lift(ranks, self.reference, 5).low > 0
        if record["progress"] or self.reference is None:
            self.reference = ranks

    def _watch(self, norm: float) -> None:
        """
        Raises:
            RunError: the gradient is not finite, and no scaled-down precision explains it.
        """
        s = self.settings
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            self._record(None, (f"{NOT_FINITE}: the gradient of update {self.update}",))
            raise RunError(f"update {self.update}: the gradient is not finite; lower lr (now {s.lr}) or clip (now {s.clip})")
        if not math.isfinite(norm):
            return  # the scaler skips this update and scales the next one less
        if alarm := explosion(norm, self.norms):
            self.raised.append(alarm)
        self.norms = [*self.norms, norm][-REMEMBERED:]

    def _averaged_state(self) -> dict[str, Tensor]:
        names = [name for name, _ in self.model.named_parameters()]
        return {**self.model.state_dict(), **dict(zip(names, self.averaged, strict=True))}

    def _mine(self, windows: Windows) -> Mined:
        """Hard negatives for some targets of this epoch, by what the model expects now."""
        s = self.settings
        rng = np.random.default_rng(generator_seed(s.seed, MINING, self.update))
        targets = windows.rows(np.arange(len(windows)))
        targets = np.setdiff1d(targets, self.bank.offsets)  # what starts a document is predicted from nothing of it
        chosen = np.sort(rng.choice(targets, min(MINED_TARGETS, len(targets)), replace=False))
        predicted = predict_rows(self.model, self.bank, chosen, None)
        return mine(self.bank, self.gradient.train_rows, chosen, predicted, s.hard, s.hard_low, s.hard_high)

    def _passages(self, update: int) -> tuple[Windows, Int64[np.ndarray, " B"]]:
        """Which passages an update reads: epochs of shuffled windows, each dealt evenly, so that no update is a remainder."""
        s = self.settings
        while update >= self._edges[-1]:
            self._epoch += 1
            rng = np.random.default_rng(generator_seed(s.seed, ORDER, self._epoch))
            self._windows = epoch(s, self.bank, self.split.train, rng)
            self._edges.append(self._edges[-1] + math.ceil(len(self._windows) / (s.batch * s.accumulate)))
        first, last = self._edges[-2], self._edges[-1]
        return self._windows, np.array_split(np.arange(len(self._windows)), last - first)[update - first]

    def _schedule(self, update: int) -> float:
        """Linear warm-up, then a cosine to ``FLOOR``, as a factor of the peak learning rate."""
        s = self.settings
        if update < s.warmup:
            return (update + 1) / s.warmup
        done = (update - s.warmup) / max(1, s.updates - s.warmup)
        if s.seconds:
            done = max(done, self.seconds() / s.seconds)
        return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _clocks(device: str) -> tuple[float, float]:
    """Seconds of this process's processor, or of the wall where an accelerator computes; and of the wall."""
    wall = time.monotonic()
    return (time.process_time() if device == "cpu" else wall), wall


def _optimizer(model: nn.Module, log_temperature: nn.Parameter, settings: TrainSettings) -> torch.optim.AdamW:
    """Matrices decay and learn at ``lr``; vectors, scalars and the trunk do neither: few, and shared by all content."""
    named = dict(model.named_parameters())
    shared = tuple(f"{part}{name}" for part in ("", "shared.") for name in ("trunk.", "recall_weights", "constants"))
    quick = [p for name, p in named.items() if p.ndim < 2 or name.startswith(shared)]
    slow = [p for p in named.values() if not any(p is q for q in quick)]
    temperature = [log_temperature] if settings.learn_temperature else []
    groups = [
        {"params": slow, "factor": 1.0, "weight_decay": settings.weight_decay},
        {"params": [*quick, *temperature], "factor": settings.faster, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98))


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
