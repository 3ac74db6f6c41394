"""What a training run is made of."""

from dataclasses import dataclass
from typing import Literal

from nextvec.errors import SettingsError

MOST = {
    "context": 1_000_000,
    "batch": 1_000_000,
    "hidden": 65_536,
    "layers": 64,
    "slots": 1_000_000,
    "working": 1_000_000,
    "negatives": 1_000_000,
    "threads": 1_024,
    "seed": 2**62,
    "lr": 1e3,
    "temperature": 1e3,
    "clip": 1e9,
}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Every choice of a run, resolved and written into it.

    Attributes:
        model: ``memory_gru`` (ours), ``gru``, or ``published`` (the predecessor's).
        context: vectors a training passage reads; every one after the first is a target.
        batch: passages per update.
        updates: optimiser steps at most.
        hidden, layers, slots, working, dropout: see the models; slots=0 or
            working=0 takes that memory away.
        lr: peak learning rate of matrices; vectors and the trunk learn 5 times faster.
        weight_decay: AdamW's, on matrices only.
        warmup: updates of linear ramp; a cosine to 2 % follows.
        temperature: where the learned temperature starts.
        negatives: rows drawn from the training documents for each batch,
            beside the other targets of the batch.
        clip: largest gradient norm.
        evaluate_every: updates between looks at the valid exam.
        patience: looks without a new best before training stops.
        pool: candidates of the valid exam; None for the whole bank.
        valid, test: shares of rows held out.
        seed: of weights, order, dropout and sampled negatives.
        threads: processor threads; part of the settings because bits depend on it.
    """

    model: Literal["memory_gru", "gru", "published"] = "memory_gru"
    context: int = 256
    batch: int = 4
    updates: int = 200
    hidden: int = 64
    layers: int = 1
    slots: int = 2048
    working: int = 256
    dropout: float = 0.2
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 20
    temperature: float = 0.07
    negatives: int = 0
    clip: float = 1.0
    evaluate_every: int = 20
    patience: int = 5
    pool: int | None = 1000
    valid: float = 0.15
    test: float = 0.2
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("context", "batch", "updates", "hidden", "layers", "evaluate_every", "patience", "threads"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("slots", "working", "warmup", "negatives", "seed"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name}={getattr(self, name)}: must not be negative")
        for name in ("lr", "temperature", "clip"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name}={getattr(self, name)}: must be above 0")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise SettingsError(f"{name}={getattr(self, name)}: must be at most {most:,}")
        if not 0 <= self.weight_decay < 1:
            raise SettingsError(f"weight_decay={self.weight_decay}: must be at least 0 and below 1")
        if not 0 <= self.dropout < 1:
            raise SettingsError(f"dropout={self.dropout}: must be at least 0 and below 1")
        if self.pool is not None and self.pool < 2:
            raise SettingsError(f"pool={self.pool}: must be at least 2, or none for the whole bank")
