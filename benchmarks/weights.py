"""What rounding the weights costs in Hit@5, with its paired interval.

    python benchmarks/weights.py RUN [RUN ...]

The same run sits its test exam with its weights as they are, in bfloat16 and
in int8; differences are paired by row and resampled by document.
"""

import sys
from pathlib import Path

import torch

from nextvec.evaluation import Exam, predict_rows
from nextvec.kernels.weights import FORMATS
from nextvec.models.packed import pack, weight_bytes
from nextvec.ranks import paired_lift
from nextvec.runs import Run, bank_of, load_model
from table import show


def main() -> None:
    torch.set_num_threads(1)
    table = []
    for path in sys.argv[1:]:
        run = Run.open(Path(path))
        bank = bank_of(run)
        exam = Exam.over(bank, run.split(bank).test, "test")
        model = load_model(run)
        plain_RD = predict_rows(model, bank, exam.rows, run.settings.passages.context)
        plain = exam.rank(plain_RD, model)
        for form in FORMATS:
            packed = pack(model, form)
            predicted_RD = predict_rows(packed, bank, exam.rows, run.settings.passages.context)
            ranks = exam.rank(predicted_RD, model)
            lift = paired_lift(ranks, plain, 5)
            cosine = float((predicted_RD * plain_RD).sum(1).mean())
            interval = f"{100 * lift.low:+.2f} to {100 * lift.high:+.2f}"
            figures = (f"{cosine:.6f}", f"{ranks.hit(5).value:.2%}", f"{100 * lift.value:+.2f}", interval)
            table.append([run.name, run.settings.model, form, f"{weight_bytes(packed) / 1e6:.2f}", *figures])
    columns = ["run", "model", "weights", "MB", "mean cosine", "Hit@5", "change", "95 %"]
    note = "among 1,000 candidates; cosine: of the predictions with those of the plain model; changes in points"
    show("Rounded weights", columns, table, note)


if __name__ == "__main__":
    main()
