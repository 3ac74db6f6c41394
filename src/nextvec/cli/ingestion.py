"""The verb that makes a bank."""

import sys
from argparse import Namespace

from nextvec.cli import show
from nextvec.cli.inspection import bank_facts
from nextvec.cli.output import facts
from nextvec.errors import DataError
from nextvec.ingestion import Chunking
from nextvec.ingestion import ingest as run_ingest
from nextvec.ingestion.ingest import open_any


def ingest(arguments: Namespace) -> int:
    chunking = Chunking(arguments.size, arguments.unit, arguments.overlap)
    with show.Bars() as bars:
        if arguments.bank.exists():
            raise DataError(f"{arguments.bank} already exists; choose another name or delete it first")
        source = open_any(
            arguments.source, arguments.bank, arguments.encoder_name, arguments.skip_unreadable, bars, arguments.items
        )
        bank = run_ingest(source, arguments.bank, arguments.encoder, chunking, arguments.dtype, bars)
    for note in source.unread.notes():
        print(f"nextvec: {arguments.source}: {note}", file=sys.stderr)
    left_out = source.unread.to_json()
    return facts({**bank_facts(bank), **({"not_read": left_out} if left_out and arguments.json else {})}, arguments)
