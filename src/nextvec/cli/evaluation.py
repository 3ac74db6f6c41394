"""The verbs that report how good predictions are."""

from argparse import Namespace

from nextvec.cli import show
from nextvec.cli.banks import open_bank_of, open_source
from nextvec.cli.output import as_json
from nextvec.demo import demo as run_demo
from nextvec.evaluation.results import OWN_CONTEXT
from nextvec.evaluation.runs import evaluate as run_evaluate
from nextvec.lanes import Lanes
from nextvec.pages.report_page import write_report_page


def demo(arguments: Namespace) -> int:
    with show.Bars() as bars:
        found = run_demo(arguments.out, arguments.size, bars, [bars], bars.before_training).to_json()
    if arguments.json:
        return as_json(found)
    show.report_table(found)
    show.curve_table(found["curve"])
    print()
    show.examples(found["examples"])
    print(f"\nThe whole report: {(arguments.out / 'report.html').resolve()}")
    return 0


def evaluate(arguments: Namespace) -> int:
    source = open_source(arguments.run, arguments)
    bank = open_bank_of(source, arguments)
    context = arguments.context or OWN_CONTEXT
    with show.Bars() as bars:
        lanes = Lanes.open(arguments.lanes, bank) if arguments.lanes else None
        exam = (arguments.split, context, arguments.pool, arguments.rows)
        report = run_evaluate(source, bank, *exam, bars, lanes, arguments.refit).to_json()
    if arguments.page is not None:
        write_report_page(arguments.page, report)
    if arguments.json:
        return as_json(report)
    show.report_table(report)
    return 0
