"""The verb that writes banks and runs in the formats of other programs."""

from argparse import Namespace

from nextvec.bank import Bank
from nextvec.bank.exchange import write_parquet, write_windows
from nextvec.bank.item_tables import items_path, write_item_tables
from nextvec.cli import show
from nextvec.cli.banks import open_bank_of, open_source
from nextvec.cli.output import facts
from nextvec.errors import DataError
from nextvec.inference.export import export as export_model
from nextvec.runs import Source

MODEL = ("", ".onnx")  # endings of the folder of an exported model


def export(arguments: Namespace) -> int:
    source, ending = open_source(arguments.source, arguments), arguments.out.suffix.lower()
    if not isinstance(source, Bank) or ending in MODEL:
        return _export_model(source, arguments)
    if ending == ".parquet" and source.manifest.items is not None:
        with show.Bars() as bars:
            write_item_tables(source, arguments.out, bars)
        written = {"items_file": str(items_path(arguments.out)), "rows": len(source), "items": len(source.table)}
    elif ending == ".parquet":
        with show.Bars() as bars:
            write_parquet(source, arguments.out, bars)
        written = {"rows": len(source)}
    elif ending == ".npz":
        written = {"windows": write_windows(source, arguments.out, arguments.context)}
    else:
        raise DataError(
            f"{arguments.out}: write .parquet or .npz; or, for the weights of the package as ONNX, a folder without an ending"
        )
    return facts({"file": str(arguments.out), **written, "bytes": arguments.out.stat().st_size}, arguments)


def _export_model(source: Source, arguments: Namespace) -> int:
    bank = open_bank_of(source, arguments) if arguments.bank else None
    manifest = export_model(source, arguments.out, bank)
    written = {
        "folder": str(arguments.out),
        "model": manifest["model"],
        "bytes": sum(file.stat().st_size for file in arguments.out.iterdir()),
        "state_tensors": len(manifest["state"]),
        **{f"{part}_difference": float(f"{value:.1e}") for part, value in manifest["checked"]["largest_difference"].items()},
    }
    return facts(written, arguments)
