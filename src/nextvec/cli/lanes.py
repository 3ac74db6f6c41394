"""The verb that makes lanes and prints their census."""

from argparse import Namespace
from typing import Any

import numpy as np

from nextvec.bank import Bank
from nextvec.cli import show, show_lanes
from nextvec.cli.banks import open_bank
from nextvec.cli.output import as_json
from nextvec.errors import DataError, SettingsError
from nextvec.lanes import (
    DEFAULT,
    LaneCensus,
    Lanes,
    agreement,
    by_chance,
    by_clusters,
    by_descriptions,
    by_labels,
    lane_census,
    read_labels,
    read_table,
)


def lanes(arguments: Namespace) -> int:
    if arguments.balanced and not arguments.clusters:
        raise SettingsError("--balanced makes clusters of equal size; it needs --clusters N")
    if arguments.seed is not None and not (arguments.clusters or arguments.random):
        raise SettingsError("--seed is of --clusters and --random; nothing is drawn without them")
    if arguments.out and arguments.out.exists():  # checked before the work
        raise DataError(f"{arguments.out} already exists; choose another name or delete it first")
    if arguments.out and arguments.bank.resolve() in arguments.out.resolve().parents:
        raise DataError(f"{arguments.out} lies in the bank, which is never written to; choose a folder beside it")
    bank = open_bank(arguments.bank, arguments)
    with show.Bars() as bars:
        made = _make(arguments, bank, bars)
    against = read_labels(arguments.against, bank, _names(made)) if arguments.against else None
    counted = lane_census(made, bank, arguments.needed)
    found = {
        **_facts(made, bank, counted),
        "agreement": agreement(made, bank, against).to_json() if against else None,
        "out": str(arguments.out) if arguments.out else None,
    }
    if arguments.out:
        made.save(arguments.out)
    if arguments.json:
        return as_json(found)
    show_lanes.census_table(found)
    return 0


def _make(arguments: Namespace, bank: Bank, bars: show.Bars) -> Lanes:
    seed = arguments.seed or 0
    if arguments.clusters:
        return by_clusters(bank, arguments.clusters, seed, arguments.balanced, bars)
    if arguments.random:
        return by_chance(bank, arguments.random, seed)
    if arguments.labels:
        return by_labels(bank, read_labels(arguments.labels, bank))
    table = read_table(arguments.table) if arguments.table else DEFAULT
    labels = read_labels(arguments.against, bank, table.names) if arguments.against else None
    return by_descriptions(bank, table, labels=labels)


def _names(made: Lanes) -> tuple[str, ...] | None:
    """The names that labels must use; None for clusters and random lanes, which have none."""
    return None if made.manifest.kind in ("clusters", "chance") else made.names


def _facts(made: Lanes, bank: Bank, counted: LaneCensus) -> dict[str, Any]:
    facts = counted.to_json()
    for lane in facts["lanes"]:
        lane["examples"] = [_example(bank, row) for row in lane["examples"]]
    m = made.manifest
    return {
        "bank": str(bank.path),
        "rows": len(bank),
        "documents": bank.num_documents,
        "kind": m.kind,
        "table": m.table,
        "made": m.made,
        "temperature": m.temperature,
        "calibrated": m.calibrated,
        **facts,
    }


def _example(bank: Bank, row: int) -> dict[str, Any]:
    document, title = bank.documents[int(bank.document_of(np.array([row]))[0])]
    return {"row": row, "document": document, "title": title, "text": bank.text(row)}
