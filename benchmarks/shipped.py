"""Train one set of weights on several banks: the weights that travel inside the package.

    python benchmarks/shipped.py books.bank technical.bank ... --out weights.safetensors
    python benchmarks/shipped.py books.bank technical.bank ... --without books.bank
    nextvec evaluate books.bank                            # no training: examine the weights of the package

The weights hold no content (nextvec.models.pooled), so one set serves every bank. Each bank has a space of its own,
cross-fitted over its training documents, and updates read the banks in turn. Valid and test documents are never trained on.
The table shows Hit@5 on the test documents of every bank. The weights have never seen the kind of text of a bank that was
left out.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import nn

from nextvec.bank import Bank
from nextvec.bank.moments import Moments, moments
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.report import Report, examine, points
from nextvec.models import Pooled
from nextvec.models.space import InSpace, Space
from nextvec.recipes import recipe
from nextvec.runs.settings import TrainSettings
from nextvec.runs.shipped import CONTEXT, POWER
from nextvec.training.folds import Fold, folds
from nextvec.training.gradient import Gradient
from nextvec.training.optimizer import make_optimizer, parameters_of, rate_factor
from nextvec.windows import rows_of, split

NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Source:
    """A bank that the weights are trained on or examined on."""

    name: str
    bank: Bank
    test: Exam
    found: Moments
    gradient: Gradient
    folds: list[Fold]


def main(arguments: argparse.Namespace) -> None:
    settings = recipe("default", 0).replaced(
        device="cpu", start="", power=POWER, updates=arguments.updates, lr=arguments.lr, seed=arguments.seed
    )
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(settings.seed)
    dim = Bank.open(arguments.banks[0]).dim
    model = InSpace(Space.blank(dim), Pooled(dim, 0.5))
    log_temperature = nn.Parameter(torch.tensor(settings.objective.temperature).log())
    sources = [_source(path, settings, model, log_temperature) for path in arguments.banks]
    left_out = {Path(path).stem for path in arguments.without}
    train([source for source in sources if source.name not in left_out], settings, model, log_temperature)
    if arguments.out:
        tensors = {name: tensor.detach().contiguous() for name, tensor in model.model.state_dict().items()}
        save_file({**tensors, "log_temperature": log_temperature.detach()}, arguments.out)
    show({source.name: report(source, model) for source in sources}, left_out)


def _source(path: str, settings: TrainSettings, model: InSpace, log_temperature: nn.Parameter) -> Source:
    bank = Bank.open(path)
    parts = split(bank, settings.split.valid, settings.split.test)
    test = Exam.over(bank, parts.test, "test")
    gradient = Gradient(model, log_temperature, bank, rows_of(bank, parts.train), settings)
    return Source(Path(path).stem, bank, test, moments(bank, parts.train), gradient, folds(settings, bank, parts.train, POWER))


def train(sources: list[Source], settings: TrainSettings, model: InSpace, log_temperature: nn.Parameter) -> None:
    """Updates read one fold of one bank each, the banks in turn."""
    optimizer = make_optimizer(model, log_temperature, True, settings.optimizer)
    for update in range(settings.optimizer.updates):
        source = sources[update % len(sources)]
        turn = update // len(sources)
        fold = source.folds[turn % len(source.folds)]
        for group in optimizer.param_groups:
            group["lr"] = settings.optimizer.lr * group["factor"] * rate_factor(settings.optimizer, update, 0.0)
        windows, chosen = fold.order.at(turn // len(source.folds))
        optimizer.zero_grad()
        with fold.reading(model):
            computed = source.gradient.compute(update, windows, chosen, NOTHING, fold.rows, False)
        nn.utils.clip_grad_norm_(parameters_of(optimizer), settings.optimizer.clip)
        optimizer.step()
        if update % 100 == 0:
            print(f"update {update}: {source.name} {computed.loss:.3f}", flush=True)


def report(source: Source, model: InSpace) -> Report:
    """On the unseen documents of a bank, in the space of its training documents."""
    own = InSpace(Space.fitted(source.found.mean, source.found.covariance, POWER, source.found.rows), model.model).eval()
    return examine(source.test, own, "shipped", source.found, CONTEXT)


def show(reports: dict[str, Report], left_out: set[str]) -> None:
    table = Table("bank", "best raw mean", "best whitened", "shipped", "over raw", "over whitened", box=None)
    for name, found in reports.items():
        raw = max((n for n in found.baselines if "power" not in n), key=lambda n: found.baselines[n].hits(5).mean())
        fitted = max((n for n in found.baselines if "power" in n), key=lambda n: found.baselines[n].hits(5).mean())
        figures = [f"{100 * found.baselines[n].hits(5).mean():.1f}" for n in (raw, fitted)]
        lifts = [points(found.lift(5, n)) for n in (raw, fitted)]
        table.add_row(name + (" (left out)" if name in left_out else ""), *figures, str(found.ranks.hit(5)), *lifts)
    Console(width=160).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("banks", nargs="+")
    parser.add_argument("--without", action="append", default=[], metavar="BANK", help="examined, but not trained on")
    parser.add_argument("--out", help="file for the weights")
    parser.add_argument("--updates", type=int, default=800)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    main(parser.parse_args())
