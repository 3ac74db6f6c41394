"""The verb that writes banks and runs in the formats of other programs."""

from argparse import Namespace

from nextvec.bank.exchange import write_parquet, write_windows
from nextvec.bank.layout import MANIFEST
from nextvec.cli import show
from nextvec.cli.banks import open_bank, open_bank_of
from nextvec.cli.output import facts
from nextvec.errors import DataError
from nextvec.inference.export import export as export_model
from nextvec.runs import Run


def export(arguments: Namespace) -> int:
    if (arguments.source / "run.json").exists():
        return _export_model(arguments)
    if not (arguments.source / MANIFEST).exists():
        raise DataError(f"{arguments.source} is neither a bank nor a run")
    bank = open_bank(arguments.source, arguments)
    if arguments.out.suffix.lower() == ".parquet":
        with show.Bars() as bars:
            write_parquet(bank, arguments.out, bars)
        written = {"rows": len(bank)}
    elif arguments.out.suffix.lower() == ".npz":
        written = {"windows": write_windows(bank, arguments.out, arguments.context)}
    else:
        raise DataError(f"{arguments.out}: write .parquet or .npz")
    return facts({"file": str(arguments.out), **written, "bytes": arguments.out.stat().st_size}, arguments)


def _export_model(arguments: Namespace) -> int:
    run = Run.open(arguments.source)
    bank = open_bank_of(run, arguments) if arguments.bank else None
    manifest = export_model(run, arguments.out, bank)
    written = {
        "folder": str(arguments.out),
        "model": manifest["model"],
        "bytes": sum(file.stat().st_size for file in arguments.out.iterdir()),
        "state_tensors": len(manifest["state"]),
        **{f"{part}_difference": float(f"{value:.1e}") for part, value in manifest["checked"]["largest_difference"].items()},
    }
    return facts(written, arguments)
