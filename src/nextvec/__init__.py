"""nextvec: read a long context of embedding vectors, predict the next one, and measure it honestly.

The way from text to a number that can be believed::

    import nextvec as nv

    bank = nv.ingest("books/", "books.bank")          # or nv.Bank.from_numpy(vectors, lengths)
    run = nv.begin("runs/first", "default", nv.recipe("default", len(bank)), bank)
    for event in nv.train(run, bank):
        print(event)
    print(nv.evaluate(run, bank, "test", context=500))
"""

from nextvec.bank import Bank
from nextvec.evaluation import Exam, Report
from nextvec.ingest import Chunking, Document, ingest
from nextvec.ranks import Ranks, Rate
from nextvec.recipes import recipe
from nextvec.training import Run, TrainSettings, begin, evaluate, load_model, train
from nextvec.windows import split

__version__ = "0.1.0"

__all__ = [
    "Bank",
    "Chunking",
    "Document",
    "Exam",
    "Ranks",
    "Rate",
    "Report",
    "Run",
    "TrainSettings",
    "begin",
    "evaluate",
    "ingest",
    "load_model",
    "recipe",
    "split",
    "train",
]
