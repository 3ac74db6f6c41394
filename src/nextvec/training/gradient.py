"""The gradient of one update, for any number of passages, of which a few are in memory at a time."""

# Axes: B passages, T positions, N targets, C candidates, D width, W width of an output, E width of a mapped candidate.

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nextvec.bank import Bank
from nextvec.batches import Candidates, Passages, candidates, passages
from nextvec.models import Recurrent
from nextvec.models.hooks import AuxiliaryLoss
from nextvec.objective import cosine_distance, gradient_norms, info_nce, smooth_misses, squared_distance
from nextvec.runs.seeds import generator_seed
from nextvec.runs.settings import TrainSettings
from nextvec.training.support import reduced_precision
from nextvec.windows import Windows

DROPOUT, NEGATIVES, TARGETS = 2, 3, 6
BLOCK = 512  # predictions that are scored at once


@dataclass
class Computed:
    """The loss and the targets of one update.

    Attributes:
        loss: weighted sum of the terms, mean over all targets of the update.
        terms: value of each weighted term.
        gradient_norms: norm of each term's gradient at the predictions; empty unless it was measured.
        targets: rows, in the order of the passages.
        negatives: mean number per target.
    """

    loss: float
    terms: dict[str, float]
    gradient_norms: dict[str, float]
    targets: Int64[np.ndarray, " N"]
    negatives: float


class Gradient:
    """Adds an update's gradient to ``.grad`` of the model and the temperature.

    With ``cached``, all passages of an update share their negatives, although only ``batch`` of them are in memory at a
    time. All passages are predicted without graphs, the loss of all predictions is computed together, and a second pass
    carries its gradient at the predictions through each batch (gradient caching, Gao et al. 2021, arXiv 2101.06983).
    The candidates are mapped once, and the gradient at their maps is carried back, too. The result is the gradient of one large
    batch.
    """

    def __init__(
        self,
        model: Recurrent[Any],
        log_temperature: nn.Parameter,
        bank: Bank,
        train_rows: Int64[np.ndarray, " rows"],
        settings: TrainSettings,
        scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> None:
        self.model, self.log_temperature, self.bank = model, log_temperature, bank
        self.settings, self.scale = settings, scale
        self.device = log_temperature.device
        self.classes = bank.classes
        self.copies = np.bincount(self.classes[train_rows], minlength=len(bank.table))
        self._whole: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=True) if settings.compute.compile else model

    def compute(
        self,
        update: int,
        windows: Windows,
        chosen: Int64[np.ndarray, " B"],
        others: Int64[np.ndarray, " rows"],
        drawn_from: Int64[np.ndarray, " drawn"],
        measure: bool,
    ) -> Computed:
        """Gradient of the mean loss over all targets of some passages.

        Args:
            chosen: which of the windows; ``batch`` of them are computed at once.
            others: rows that are negatives of every target.
            drawn_from: rows from which further negatives are drawn.
            measure: whether to measure the gradient norm of each term, which costs a second backward pass through the loss.
        """
        batch = self.settings.optimizer.batch
        places = [chosen[i : i + batch] for i in range(0, len(chosen), batch)]
        read = [self._drawn(passages(self.bank, windows, place), update, n) for n, place in enumerate(places)]
        counts = [int((p.targets >= 0).sum()) for p in read]
        groups = [range(len(read))] if self.settings.negatives.cached else [range(i, i + 1) for i in range(len(read))]
        return _together([self._group(update, read, group, sum(counts), (others, drawn_from), measure) for group in groups])

    def _drawn(self, read: Passages, update: int, number: int) -> Passages:
        """The passages with only some of their targets, where the settings say so."""
        wanted = self.settings.passages.targets
        if not wanted:
            return read
        rng = np.random.default_rng(generator_seed(self.settings.seed, TARGETS, update, number))
        targets = read.targets.numpy()
        order = np.where(targets >= 0, rng.random(targets.shape), 2.0)
        kept = (order.argsort(1).argsort(1) < wanted) & (targets >= 0)
        return Passages(read.x, torch.from_numpy(np.where(kept, targets, -1)))

    def _group(
        self,
        update: int,
        read: Sequence[Passages],
        group: range,
        total: int,
        negatives: tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " drawn"]],
        measure: bool,
    ) -> Computed:
        """The gradient of batches that share one loss. Several batches are predicted twice; a single batch keeps its graph."""
        s, alone = self.settings, len(group) == 1
        with torch.set_grad_enabled(alone):
            outputs, auxiliary = zip(*(self._predict(read[i], update, i) for i in group), strict=True)
        rows = np.concatenate([read[i].targets[read[i].targets >= 0].numpy() for i in group])
        rng = np.random.default_rng(generator_seed(s.seed, NEGATIVES, update, group.start))
        others, drawn_from = negatives
        drawn = rng.choice(drawn_from, s.negatives.negatives)
        predicted_NW = torch.cat([y.detach() for y in outputs]).requires_grad_()
        named = self._named(rows, np.concatenate([drawn, others]))
        mapped_CE = self._mapped(named.vectors.to(self.device))
        compared_CE = mapped_CE.detach().requires_grad_(mapped_CE.requires_grad)
        found: list[Computed] = []
        for start in range(0, len(rows), BLOCK):  # the scores of all predictions at once would need more memory than the model
            block = slice(start, start + BLOCK)
            share = len(rows[block]) / total
            terms = {
                name: share * term
                for name, term in self._terms(predicted_NW[block], compared_CE, rows[block], named, block).items()
            }
            norms = gradient_norms(terms, predicted_NW) if measure else {}
            loss = torch.stack(list(terms.values())).sum()
            self.scale(loss).backward()
            values = {name: term.item() for name, term in terms.items()}
            found.append(Computed(loss.item(), values, norms, rows[block], named.negatives))
        assert predicted_NW.grad is not None
        if compared_CE.grad is not None:  # a map of the candidates that is trained
            with_gradient([mapped_CE], [compared_CE.grad]).backward()
        edges = np.cumsum([0, *(len(y) for y in outputs)])
        for n, (i, (first, last)) in enumerate(zip(group, pairwise(edges.tolist()), strict=True)):
            output, added = (outputs[n], auxiliary[n]) if alone else self._predict(read[i], update, i)
            share = len(output) / total
            ends, gradients = [output], [predicted_NW.grad[first:last]]
            if added is not None:
                weighted = share * added.weight * added.value
                ends.append(self.scale(weighted))
                gradients.append(torch.ones_like(weighted))
                found.append(Computed(weighted.item(), {added.name: weighted.item()}, {}, rows[:0], 0.0))
            with_gradient(ends, gradients).backward()
        return _together(found)

    def _predict(self, read: Passages, update: int, number: int) -> tuple[Float[Tensor, "N W"], AuxiliaryLoss | None]:
        """Predictions of the scored rows, and the model's auxiliary loss if it has one.

        Dropout is a function of the update and the number of the batch, so a second call gives the same predictions.
        """
        s, scored_BT = self.settings, (read.targets >= 0).to(self.device)
        torch.manual_seed(generator_seed(s.seed, DROPOUT, update, number))
        x_BTD = read.x.to(self.device)
        with reduced_precision(s.compute.precision, self.device.type):
            if s.objective.loss_on == "delta":
                return self.model.difference(x_BTD).float(), None
            if self.model.has_auxiliary:
                y_BTD, auxiliary = self.model.with_auxiliary(x_BTD, scored_BT)
                return y_BTD[scored_BT].float(), auxiliary
            if s.passages.supervision == "last":
                return self.model.last(x_BTD).float(), None
            segment = s.compute.segment
            y_BTD = in_segments(self.model, x_BTD, segment) if segment else self._whole(x_BTD)
        return y_BTD[scored_BT].float(), None

    def _named(self, rows: Int64[np.ndarray, " N"], others: Int64[np.ndarray, " rows"]) -> Candidates:
        """The candidates of the targets; for raw differences only the differences of the other targets."""
        if self.settings.objective.loss_on == "vector":
            return candidates(self.bank, self.classes, self.copies, rows, others, self.settings.negatives.in_batch)
        place_N, count = torch.arange(len(rows)), len(rows)
        return Candidates(self._truths(rows).cpu(), place_N, torch.zeros(count, count, dtype=torch.bool), torch.zeros(count))

    def _mapped(self, rows_CD: Float[Tensor, "C D"]) -> Float[Tensor, "C E"]:
        """Candidates as the model compares them; raw differences are compared as they are."""
        return rows_CD if self.settings.objective.loss_on == "delta" else self.model.candidates(rows_CD)

    def _terms(
        self,
        predicted_BW: Float[Tensor, "B W"],
        mapped_CE: Float[Tensor, "C E"],
        rows: Int64[np.ndarray, " B"],
        named: Candidates,
        block: slice,
    ) -> dict[str, Tensor]:
        """Every term of the loss with a weight above 0, weighted, mean over some of the targets."""
        s, device = self.settings.objective, self.device
        terms: dict[str, Tensor] = {}
        if s.alpha or s.misses:
            scores_BC = self.model.scores(predicted_BW, mapped_CE)
            truth_B, forbidden_BC = named.truth[block].to(device), named.forbidden[block].to(device)
            temperature = self.log_temperature.exp()
            if s.alpha:
                terms["nce"] = s.alpha * info_nce(scores_BC, truth_B, forbidden_BC, temperature, named.log_q.to(device))
            if s.misses:
                terms["misses"] = s.misses * smooth_misses(scores_BC, truth_B, forbidden_BC, temperature)
        if s.cosine or s.mse:
            direction_BE = predicted_BW if self.model.num_queries == 1 else self.model.queries(predicted_BW).mean()
            truth_BE = self._mapped(self._truths(rows))
            if s.cosine:
                terms["cosine"] = s.cosine * cosine_distance(direction_BE, truth_BE)
            if s.mse:
                terms["mse"] = s.mse * squared_distance(direction_BE, truth_BE)
        return terms

    def _truths(self, rows: Int64[np.ndarray, " N"]) -> Float[Tensor, "N D"]:
        """The targets of the loss: the next vectors, or their differences to the last ones."""
        truth_ND = torch.from_numpy(self.bank.rows[rows]).float()
        if self.settings.objective.loss_on == "delta":
            truth_ND = truth_ND - torch.from_numpy(self.bank.rows[rows - 1]).float()
        return truth_ND.to(self.device)


def with_gradient(ends: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A number whose gradient at each end is the given one.

    Its ``backward()`` computes what ``torch.autograd.backward(ends, gradients)`` does, which imports sympy: half a second.
    """
    return torch.stack([(end * gradient).sum() for end, gradient in zip(ends, gradients, strict=True)]).sum()


def _together(parts: Sequence[Computed]) -> Computed:
    """Parts of one update: values are summed; gradient norms at different predictions are combined by their squares."""
    targets = sum(len(part.targets) for part in parts)
    return Computed(
        sum(part.loss for part in parts),
        {name: sum(part.terms.get(name, 0.0) for part in parts) for name in _names(part.terms for part in parts)},
        {
            name: math.hypot(*(part.gradient_norms.get(name, 0.0) for part in parts))
            for name in _names(part.gradient_norms for part in parts)
        },
        np.concatenate([part.targets for part in parts]),
        sum(part.negatives * len(part.targets) for part in parts) / targets,
    )


def _names(parts: Iterable[dict[str, float]]) -> list[str]:
    """Each name once, in the order of its first occurrence."""
    return list(dict.fromkeys(name for part in parts for name in part))


def in_segments(model: Recurrent[Any], x_BTD: Float[Tensor, "B T D"], segment: int) -> Float[Tensor, "B T W"]:
    """``model(x)`` with gradient checkpoints (Chen et al. 2016, arXiv 1604.06174): only the states between segments are kept.

    Activations inside a segment are computed again in the backward pass. Every model can be split between two vectors,
    because a split passage gives the same predictions.
    """
    state = model.start(len(x_BTD))
    outputs: list[Tensor] = []
    for piece_BSD in x_BTD.split(segment, dim=1):
        state, y_BSD = checkpoint(model.run, state, piece_BSD, use_reentrant=False)
        outputs.append(y_BSD)
    return torch.cat(outputs, dim=1)
