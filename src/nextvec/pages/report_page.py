"""The page of an evaluation: the model beside the baselines, and how well its probabilities agree with what came."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextvec.bank.layout import write_atomically
from nextvec.evaluation.report import shown_baselines
from nextvec.pages.charts import interval
from nextvec.pages.confidence_part import confidence_part
from nextvec.pages.templates import templates

Json = Mapping[str, Any]


def write_report_page(path: Path, report: Json) -> None:
    """Write one self-contained page of the result of ``nextvec evaluate``."""
    page = templates().get_template("report.html")
    part = confidence_part(report["confidence"])
    write_atomically(path, page.render(report=report, rows=predictor_rows(report), confidence=part, bar=interval))


def predictor_rows(report: Json, name: str | None = None) -> list[dict[str, Any]]:
    """The model, then the best baseline of each kind from the best down.

    Args:
        name: of the model; that of the report if None.
    """
    own = {**report["model"], "name": name or report["model"]["name"], "kind": "model"}
    best = report["lift"]["over"]
    return [
        own,
        *(
            {"name": other, "kind": "baseline" if other == best else "quiet", **figures}
            for other, figures in shown_baselines(report).items()
        ),
    ]
