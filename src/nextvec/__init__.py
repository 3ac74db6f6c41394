"""nextvec: read a long context of embedding vectors, predict the next one, and measure it honestly.

The way from text to a number that can be believed::

    import nextvec as nv

    bank = nv.ingest("books/", "books.bank")          # or nv.Bank.from_numpy(vectors, lengths)
    print(nv.evaluate(bank))                          # the weights of the package, without training
    run = nv.begin("runs/first", "default", nv.recipe("default", len(bank)), bank)
    for event in nv.train(run, bank):
        print(event)
    print(nv.evaluate(run, bank, "test", context=500))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextvec.bank import Bank
    from nextvec.evaluation import Exam, Report
    from nextvec.evaluation.runs import evaluate
    from nextvec.inference import Engine, Session
    from nextvec.ingestion import Chunking, Document, ingest
    from nextvec.ranks import Ranks, Rate
    from nextvec.recipes import recipe
    from nextvec.runs import Run, TrainSettings, load_model
    from nextvec.training import begin, train
    from nextvec.windows import split

__version__ = "0.1.0"

__all__ = [
    "Bank",
    "Chunking",
    "Document",
    "Engine",
    "Exam",
    "Ranks",
    "Rate",
    "Report",
    "Run",
    "Session",
    "TrainSettings",
    "begin",
    "evaluate",
    "ingest",
    "load_model",
    "recipe",
    "split",
    "train",
]

_HOMES = {
    "bank": ("Bank",),
    "evaluation": ("Exam", "Report"),
    "inference": ("Engine", "Session"),
    "ingestion": ("Chunking", "Document", "ingest"),
    "ranks": ("Ranks", "Rate"),
    "recipes": ("recipe",),
    "evaluation.runs": ("evaluate",),
    "runs": ("Run", "TrainSettings", "load_model"),
    "training": ("begin", "train"),
    "windows": ("split",),
}


def __getattr__(name: str) -> Any:
    """Public names are imported on first use: `nextvec --help` does not wait for torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"nextvec.{home}"), name)
    raise AttributeError(f"module 'nextvec' has no attribute {name!r}")
