"""Banks, reports and answers as HTML tables in notebooks; needs ``ipython``.

In a notebook::

    %load_ext nextvec.integrations.jupyter
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from IPython.core.interactiveshell import InteractiveShell

from nextvec.bank import Bank
from nextvec.evaluation import Report
from nextvec.evaluation.report import shown_baselines
from nextvec.inference import Expected
from nextvec.pages.templates import templates

SHOWN = 400  # characters of a chunk


@runtime_checkable
class Formatter(Protocol):
    """The part of IPython's formatter for HTML that is used here."""

    def for_type(self, typ: type[Any], func: Any) -> object: ...


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the tables; called by ``%load_ext``."""
    formatter = _formatter(shell)
    formatter.for_type(Bank, bank_html)
    formatter.for_type(Report, report_html)
    formatter.for_type(Expected, _expected_html)
    formatter.for_type(list, answer_html)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Remove the tables; called by ``%unload_ext``."""
    formatter = _formatter(shell)
    for kind in (Bank, Report, Expected, list):
        formatter.for_type(kind, _no_html)


def bank_html(bank: Bank) -> str:
    """The size of a bank and where its vectors come from."""
    m = bank.manifest
    facts = {
        "rows": f"{m.rows:,}",
        "documents": f"{m.documents:,}",
        "width": f"{m.dim:,}",
        "numbers": m.dtype,
        "encoder": m.encoder,
        "text": "yes" if m.text else "no",
        "path": "in memory" if bank.path is None else str(bank.path),
        "fingerprint": bank.fingerprint[:16],
    }
    return _rendered("facts.html", title="Bank", facts=facts)


def report_html(report: Report) -> str:
    """The model, the best baseline of each kind, chance, and the terms of the exam."""
    whole = report.to_json()
    own = {"name": whole["model"]["name"], **whole["model"]}
    rows = [own, *({"name": name, **figures} for name, figures in shown_baselines(whole).items())]
    return _rendered("report.html", report=whole, rows=rows)


def answer_html(found: Sequence[Any]) -> str | None:
    """The expected vectors, the best first; None for a list of other things, which IPython then shows as it is."""
    if not found or not all(isinstance(each, Expected) for each in found):
        return None
    chunks = [(each, _short(each.text)) for each in found]
    return _rendered("answer.html", chunks=chunks)


def _expected_html(found: Expected) -> str | None:
    return answer_html([found])


def _no_html(_: object) -> None:
    """IPython then shows the value as it is."""


def _short(text: str | None) -> str:
    return "" if text is None else text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _rendered(template: str, **values: Any) -> str:
    return templates("nextvec.integrations").get_template(template).render(**values)


def _formatter(shell: InteractiveShell) -> Formatter:
    display: Any = shell.display_formatter
    return display.formatters["text/html"]
