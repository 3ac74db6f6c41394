"""The verbs that report how good a run is."""

from argparse import Namespace

from nextvec.cli import show
from nextvec.cli.banks import open_bank_of
from nextvec.cli.output import as_json
from nextvec.demo import demo as run_demo
from nextvec.evaluation.results import OWN_CONTEXT
from nextvec.evaluation.runs import evaluate as run_evaluate
from nextvec.lanes import Lanes
from nextvec.pages.report_page import write_report_page
from nextvec.runs import Run


def demo(arguments: Namespace) -> int:
    with show.Bars() as bars:
        found = run_demo(arguments.out, arguments.size, bars, [bars]).to_json()
    if arguments.json:
        return as_json(found)
    show.report_table(found)
    show.curve_table(found["curve"])
    print()
    show.examples(found["examples"])
    print(f"\nThe whole report: {(arguments.out / 'report.html').resolve()}")
    return 0


def evaluate(arguments: Namespace) -> int:
    run = Run.open(arguments.run)
    bank = open_bank_of(run, arguments)
    context = arguments.context or OWN_CONTEXT
    with show.Bars() as bars:
        lanes = Lanes.open(arguments.lanes, bank) if arguments.lanes else None
        report = run_evaluate(run, bank, arguments.split, context, arguments.pool, arguments.rows, bars, lanes).to_json()
    if arguments.page is not None:
        write_report_page(arguments.page, report)
    if arguments.json:
        return as_json(report)
    show.report_table(report)
    return 0
