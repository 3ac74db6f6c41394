"""The kinds of experts that are compared: their settings, their ranks and their lifts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from nextvec.errors import SettingsError, did_you_mean
from nextvec.evaluation.by_lane import Json
from nextvec.experiments.seeds import average, average_lift, kept_at
from nextvec.ranks import Ranks
from nextvec.runs import Run, TrainSettings

WHOLE, ACTIVE, TOTAL = "one", "active", "total"
KINDS: Mapping[str, str] = {
    WHOLE: "one model, no experts",
    ACTIVE: "one expert for all: equal active parameters",
    TOTAL: "one expert as large as all: equal parameters",
    "descriptions": "experts, lanes by description",
    "clusters": "experts, lanes by k-means",
    "random": "experts, random lanes",
    "adapters": "narrow experts beside a shared block, top-2, gate on lane and state",
    "constants": "four narrow experts of documents beside a shared block, each with a constant of its own",
    "stages": "top-2, gate on lane and state, experts first, then the gate",
}


@dataclass(frozen=True, eq=False)
class Kind:
    """One arrangement of experts, or a model without any: its runs, one per seed, and their ranks.

    Attributes:
        parameters, active: of the whole model, and those that one position computes with.
        use: of the experts of the first seed; None for a model without experts.
    """

    name: str
    runs: tuple[Run, ...]
    ranks: tuple[Ranks, ...]
    parameters: int
    active: int
    use: Json | None

    def to_json(self, others: "Mapping[str, Kind]", places: Mapping[str, Int64[np.ndarray, " kept"]]) -> Json:
        def lift(other: "Kind", rows: Int64[np.ndarray, " kept"] | None = None) -> Json:
            a, b = ((kind.ranks if rows is None else [r.only(rows) for r in kind.ranks]) for kind in (self, other))
            return average_lift(a, b, 5).to_json()

        references = {name: other for name, other in others.items() if name in (WHOLE, ACTIVE, TOTAL) and other is not self}
        return {
            "kind": self.name,
            "what": KINDS[self.name],
            "parameters": self.parameters,
            "active": self.active,
            "seeds": [float(ranks.hits(5).mean()) for ranks in self.ranks],
            **{f"hit@{k}": average(self.ranks, k).to_json() for k in (1, 5, 10)},
            "lift": {name: lift(other) for name, other in references.items()},
            "lanes": {
                lane: {"hit@5": average([r.only(rows) for r in self.ranks], 5).to_json()}
                | {"lift": {name: lift(other, rows) for name, other in references.items()}}
                for lane, rows in places.items()
            },
            "experts": self.use,
            "kept_at": [kept_at(run) for run in self.runs],
            "seconds": [round(run.seconds(), 1) for run in self.runs],
        }


def settings_of_kind(base: TrainSettings, kind: str) -> TrainSettings:
    """The settings of a kind, from the settings that all kinds share.

    Raises:
        SettingsError: an unknown kind.
    """
    if kind == WHOLE:
        return base.replaced(model="memory_gru")
    s = base.replaced(model="experts")
    o = s.options
    match kind:
        case "active":
            return s.replaced(experts=1)
        case "total":
            return s.replaced(experts=1, expert_width=o.experts * o.expert_width)
        case "descriptions" | "clusters" | "random":
            return s.replaced(lanes=kind)
        case "adapters":
            return s.replaced(expert_width=max(1, o.expert_width // 8), common_width=o.expert_width, gate_on="both", top=2)
        case "constants":
            narrow = s.replaced(expert_width=max(1, o.expert_width // 8), common_width=o.expert_width)
            return narrow.replaced(experts=4, constants=True, route_per="document")
        case "stages":
            return s.replaced(gate_on="both", top=2, router_fraction=0.25, balance=0.01)
        case _:
            raise SettingsError(f"there is no kind {kind!r}; {did_you_mean(kind, KINDS)}")
