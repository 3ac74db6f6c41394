"""train(): a generator of events. It writes the run as it goes, and a run that was killed can be resumed."""

# Axes: B passages.

import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from nextvec.bank import Bank
from nextvec.errors import RunError
from nextvec.evaluation.calibration import calibrate
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.negatives import Mined, Queue, mine
from nextvec.runs.loading import build, load_model
from nextvec.runs.run import BEST, CHECKPOINT, START, Run
from nextvec.runs.seeds import generator_seed
from nextvec.training.alarms import NOT_FINITE, REMEMBERED, explosion, few_updates, small_exam
from nextvec.training.begin import VALID_ROWS, basis_of_run, present, take_over
from nextvec.training.clock import Clock
from nextvec.training.events import Alarmed, Evaluated, Event, Finished, Stepped
from nextvec.training.folds import folds
from nextvec.training.gradient import Computed, Gradient
from nextvec.training.optimizer import make_optimizer, parameters_of, rate_factor
from nextvec.training.recorder import Recorder
from nextvec.training.state import TrainerState
from nextvec.training.support import check_computes
from nextvec.training.trackers import Tracker, track
from nextvec.training.validation import Validation, is_best, is_progress, patience_spent, validate
from nextvec.windows import Split, Windows, rows_of

MINING = 4
MINED_TARGETS = 4096
USED_UP, OUT_OF_TIME, PATIENCE = "updates used up", "seconds used up", "no better for {} validations"


def train(run: Run, bank: Bank, trackers: Sequence[Tracker] = ()) -> Generator[Event]:
    """Train a run, from its last checkpoint if it has one, and yield what happens.

    On a processor the history and all weights are a function of settings and data: a run that was killed and resumed
    equals one that was not, bit for bit. (Not with ``seconds``, which depends on the clock.)

    Args:
        trackers: each receives every event before it is yielded.

    Raises:
        RunError: another process is training it, another bank, or a gradient that is not finite.
        SettingsError: the run was begun on another machine, and this one cannot compute it.
    """
    with run.training():
        threads = torch.get_num_threads()
        torch.set_num_threads(run.settings.compute.threads)
        try:
            yield from track(_events(run, bank, run.split(bank)), run, trackers)
        finally:
            torch.set_num_threads(threads)


def _events(run: Run, bank: Bank, parts: Split) -> Generator[Event]:
    if run.finished:
        yield Finished(run.history()[-1]["update"], run.finished)
        return
    trainer = _Trainer(run, bank, parts)
    updates, every = run.settings.optimizer.updates, run.settings.validation.evaluate_every
    if not trainer.resume():
        yield from trainer.validate()  # update 0 is the baseline that training has to improve on
    trainer.model.train()
    while (reason := trainer.ended()) is None:
        yield from trainer.step()
        if trainer.update % every == 0 or trainer.update == updates:
            yield from trainer.validate()
    yield from trainer.finish(reason)


class _Trainer:
    """A run in training: makes updates, validates, and writes what a resumed run needs."""

    def __init__(self, run: Run, bank: Bank, split: Split) -> None:
        self.run, self.bank, self.split, self.settings = run, bank, split, run.settings
        s, device = self.settings, self.settings.compute.device
        self.model = build(s, basis_of_run(run, bank, split.train)).to(present(device))
        start = torch.tensor(math.log(s.objective.temperature), device=device)
        check_computes(self.model, s, bank.dim)
        if s.source.start:
            tensors, _ = run.load(START)
            take_over(self.model, tensors, s.source.start)
            start.copy_(tensors["log_temperature"])
        log_temperature = nn.Parameter(start, requires_grad=s.objective.learn_temperature)
        self.exam = Exam.over(bank, split.valid, "valid", s.validation.pool, VALID_ROWS)
        scaler = torch.amp.GradScaler(device, enabled=s.compute.precision == "float16")
        self.state = TrainerState(
            self.model,
            log_temperature,
            make_optimizer(self.model, log_temperature, s.objective.learn_temperature, s.optimizer),
            scaler,
            [p.detach().clone() for p in self.model.parameters()] if s.optimizer.ema else [],
            Queue.empty(s.negatives.queue),
            Mined.none(s.negatives.hard),
        )
        self.gradient = Gradient(self.model, log_temperature, bank, rows_of(bank, split.train), s, scaler.scale)
        self.folds = folds(s, bank, split.train, run.origin.power)
        self.recorder, self.clock = Recorder(), Clock(device)
        self.update = 0
        self.losses: list[float] = []
        self.raised: list[str] = []
        self.computed: Computed | None = None

    def ended(self) -> str | None:
        """Why training is over, or None."""
        s, records = self.settings, self.recorder.records
        if self.update >= s.optimizer.updates:
            return USED_UP
        validated = self.update == records[-1]["update"]
        if validated and s.optimizer.seconds and self.recorder.times[-1][1] >= s.optimizer.seconds:  # as it is recorded
            return OUT_OF_TIME
        last = self.model.last_trained()
        if last.fraction and self.update <= self._first_of_last(last.fraction):
            return None  # some parameters are not trained yet
        return PATIENCE.format(s.validation.patience) if patience_spent(s.validation, records) else None

    def step(self) -> Iterator[Event]:
        """Make one update; a function of the settings, the data and the number of the update."""
        s, state = self.settings, self.state
        for group in state.optimizer.param_groups:
            group["lr"] = s.optimizer.lr * group["factor"] * self._rate_factor(self.update)
        fold = self.folds[self.update % len(self.folds)]
        windows, chosen = fold.order.at(self.update // len(self.folds))
        if s.negatives.hard and self.update % s.negatives.mine_every == 0:
            state.mined = self._mine()
        # The space of a fold was fitted on all other documents, so that their rows are not like those of an exam.
        queued = state.queue.rows[np.isin(state.queue.rows, fold.rows)]
        others = np.concatenate([queued, state.mined.of(windows.rows(chosen))])
        state.optimizer.zero_grad()
        measure = (self.update + 1) % s.validation.evaluate_every == 0 or self.update + 1 == s.optimizer.updates
        with fold.reading(self.model):
            self.computed = self.gradient.compute(self.update, windows, chosen, others, fold.rows, measure)
        for parameter in self._untrained():
            parameter.grad = None
        state.scaler.unscale_(state.optimizer)  # pyright: ignore[reportArgumentType]  # it asks for the groups and for step()
        self._check(float(nn.utils.clip_grad_norm_(parameters_of(state.optimizer), s.optimizer.clip)))
        state.scaler.step(state.optimizer)  # pyright: ignore[reportArgumentType]
        state.scaler.update()
        state.average(s.optimizer.ema)
        self.model.after_update(self._passage(windows, chosen))
        state.queue = state.queue.push(self.computed.targets)
        self.update += 1
        self.losses.append(self.computed.loss)
        yield Stepped(self.update, s.optimizer.updates, self.computed.loss)

    def validate(self) -> Iterator[Event]:
        """Evaluate the valid exam, record it, and save what a resumed run needs."""
        weights = self.state.weights()
        found = validate(self.model, self.exam, weights if self.state.averaged else None)
        record = self._record_of(found)
        self.losses, self.raised = [], []
        if record["best"]:
            held = {**weights, "log_temperature": self.state.log_temperature}
            self.run.save(BEST, held, self.update)
        evaluated = Evaluated(self.update, record, record["best"], *self.clock.spent())
        self.recorder.on(self.run, evaluated)  # before the checkpoint: a resumed run needs the record of its update
        self.run.save(CHECKPOINT, self.state.tensors(), self.update)
        yield evaluated
        yield from (Alarmed(self.update, alarm) for alarm in record["alarms"])

    def finish(self, reason: str) -> Iterator[Event]:
        """Fit the calibration of the best weights, and record why training ended."""
        self.run.save_calibration(calibrate(load_model(self.run), self.bank, self.split))
        if alarm := few_updates(self.update):
            yield self._recorded(Alarmed(self.update, alarm))
        yield self._recorded(Finished(self.update, reason))

    def resume(self) -> bool:
        """Continue from the last checkpoint; whether there was one."""
        if not (self.run.path / CHECKPOINT).exists():
            return False
        tensors, self.update = self.run.load(CHECKPOINT)
        self.recorder.resume(self.run, self.update)
        self.clock.before = self.recorder.times[-1][1:] if self.recorder.times else (0.0, 0.0)
        self.state.restore(tensors, self.exam.clusters)
        return True

    def _recorded(self, event: Event) -> Event:
        self.recorder.on(self.run, event)
        return event

    def _untrained(self) -> Sequence[Tensor]:
        """The parameters that this update does not train, where the model trains some after all others."""
        fraction, last = self.model.last_trained()
        if not fraction:
            return []
        if self.update < self._first_of_last(fraction):
            return last
        return [p for p in parameters_of(self.state.optimizer) if not any(p is q for q in last)]

    def _first_of_last(self, fraction: float) -> int:
        return round((1 - fraction) * self.settings.optimizer.updates)

    def _passage(self, windows: Windows, chosen: Int64[np.ndarray, " B"]) -> Tensor:
        """The last passage of an update, [1, T, D] float32."""
        rows = self.bank.rows[windows.starts[chosen[-1]] : windows.stops[chosen[-1]] - 1]
        return torch.from_numpy(np.array(rows, np.float32))[None].to(self.settings.compute.device)

    def _record_of(self, found: Validation) -> dict[str, Any]:
        """What the history keeps of this validation."""
        s, state, done, records = self.settings, self.state, self.computed, self.recorder.records
        best = is_best(s.validation, found, records)
        progress = is_progress(s.validation, found, best, state.reference)
        if progress or state.reference is None:
            state.reference = found.ranks
        terms = {n: {"value": v, "gradient": done.gradient_norms.get(n)} for n, v in done.terms.items()} if done else {}
        return {
            "update": self.update,
            "loss": float(np.mean(self.losses)) if self.losses else None,
            "terms": terms,
            "grad_norm": state.norms[-1] if state.norms else None,
            "lr": s.optimizer.lr * self._rate_factor(max(0, self.update - 1)),
            "temperature": float(state.log_temperature.detach().exp()),
            "negatives_per_target": done.negatives if done else None,
            "mined_per_target": state.mined.found,
            **found.to_json(),
            "alarms": self._new_alarms(found.alarms),
            "best": best,
            "progress": progress,
        }

    def _new_alarms(self, found: Sequence[str]) -> list[str]:
        """The first alarm of each name that no earlier validation raised."""
        alarms = list(self.raised)
        if not self.recorder.records:
            alarm = small_exam(len(self.exam.rows), len(np.unique(self.exam.clusters)))
            alarms += [alarm] if alarm else []
        known = {alarm.split(":")[0] for record in self.recorder.records for alarm in record["alarms"]}
        named = {alarm.split(":")[0]: alarm for alarm in reversed([*alarms, *found])}
        return [alarm for name, alarm in reversed(named.items()) if name not in known]

    def _check(self, norm: float) -> None:
        """
        Raises:
            RunError: the gradient is not finite, and a scaled precision does not explain it.
        """
        state, o = self.state, self.settings.optimizer
        if not math.isfinite(norm):
            if state.scaler.is_enabled():
                return  # the scaler skips this update and scales the next one less
            self.recorder.on(self.run, Alarmed(self.update + 1, f"{NOT_FINITE}: the gradient of update {self.update}"))
            raise RunError(f"update {self.update}: the gradient is not finite; lower lr (now {o.lr}) or clip (now {o.clip})")
        if alarm := explosion(norm, state.norms):
            self.raised.append(alarm)
        state.norms = [*state.norms, norm][-REMEMBERED:]

    def _mine(self) -> Mined:
        """Hard negatives for some targets of each fold's epoch, near the model's present predictions, of the same fold."""
        s, found = self.settings.negatives, Mined.none(self.settings.negatives.hard)
        rng = np.random.default_rng(generator_seed(self.settings.seed, MINING, self.update))
        for fold in self.folds:
            windows, _ = fold.order.at(self.update // len(self.folds))
            targets = windows.rows(np.arange(len(windows)))
            targets = np.setdiff1d(targets, self.bank.offsets)  # the first row of a document has no context
            count = min(MINED_TARGETS // len(self.folds), len(targets))
            chosen = np.sort(rng.choice(targets, count, replace=False))
            with fold.reading(self.model):
                predicted = predict_rows(self.model, self.bank, chosen, None)
                near = mine(self.bank, fold.rows, chosen, predicted, self.model, s.hard, s.hard_low, s.hard_high)
            found = found.joined(near)
        return found

    def _rate_factor(self, update: int) -> float:
        return rate_factor(self.settings.optimizer, update, self.clock.spent()[0])
