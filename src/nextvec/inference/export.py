"""Export of a trained model as ONNX graphs, with all that a program without nextvec needs to use them."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nextvec import settings as frozen
from nextvec.bank import Bank
from nextvec.bank import layout as bank_layout
from nextvec.errors import RunError
from nextvec.inference.export_check import TOLERANCE, check_passages, differences
from nextvec.inference.export_files import (
    CANDIDATES,
    EXAMPLE,
    EXAMPLE_CODE,
    FORMAT,
    KIND,
    MANIFEST,
    PASSAGE,
    STEP,
    described,
    refuse_foreign,
    write,
)
from nextvec.inference.export_graphs import OPSET, graphs, library
from nextvec.models import Recurrent
from nextvec.runs import Source, bank_of, check_encoder, load, load_model
from nextvec.runs.run import BEST
from nextvec.runs.shipped import SHIPPED_FILE, shipped_settings

LIBRARIES = ("onnx", "onnxruntime", "onnxscript")
LARGEST = 2**31 - 2**24  # bytes of weights: protobuf ends at 2 GiB


def export(source: Source, out: str | Path, bank: Bank | None = None) -> dict[str, Any]:
    """Write a folder with which a program predicts without nextvec and PyTorch; returns the manifest of the folder.

    ``step.onnx`` is ``model.step``. Inputs: one vector per passage and every
    state tensor. Outputs: the prediction and every state tensor after it. The
    shapes are fixed: windows and the working memory have their full size from
    the start, with unfilled places, so that the start is zeros throughout.

    ``passage.onnx`` is ``model.forward``: a Scan whose body is ``model.run``
    over 16 vectors. The last block is padded with zeros, which no earlier
    position sees. Memory is bounded by one block, and a passage takes a half to
    a sixth of the time of stepping.

    ``candidates.onnx`` is ``model.candidates``; it is written only for a model
    that maps candidates. The manifest states how scores are computed.

    Before anything is written, the graphs run in ONNX Runtime, and their outputs
    and the scores are compared with the model's, on random unit vectors and, if the run's bank is still
    there, on its rows; one and three passages; one vector, seven, and more than
    any window holds (2048 at most). An earlier export in ``out`` is replaced.

    Args:
        source: a finished run, or a bank for the weights of the package in the space of its rows.
        out: the folder to make.
        bank: the graphs are checked on its rows; the bank of ``source`` when None, if it is still there.

    Raises:
        RunError: the run is not finished, ``out`` holds something else, the
            run's bank was replaced by another, the weights are larger than an .onnx file can be, or an exported graph
            differs from the model by more than 1e-4.
        SettingsError: onnx, onnxruntime or onnxscript is not installed.
    """
    for name in LIBRARIES:
        library(name)
    out = Path(out).resolve()
    refuse_foreign(out)
    model = _model(source)
    passages = check_passages(model, _rows_to_check(source, bank))  # before the tracing, which takes seconds
    made = graphs(model)
    checked = {
        "largest_difference": differences(model, made, passages),
        "tolerance": TOLERANCE,
        "passages": [list(x.shape[:2]) for x in passages],
        "torch": torch.__version__,
        "onnxruntime": library("onnxruntime").__version__,
    }
    files: dict[str, bytes] = {STEP: made.step, PASSAGE: made.passage}
    if made.candidates is not None:
        files[CANDIDATES] = made.candidates
    manifest = {
        **_facts(source, model),
        "state": [place.to_json() for place in made.places],
        "step": described(STEP, made.step),
        "passage": described(PASSAGE, made.passage),
        "candidates": None if made.candidates is None else described(CANDIDATES, made.candidates),
        "checked": checked,
    }
    write(out, {**files, MANIFEST: json.dumps(manifest, indent=1) + "\n", EXAMPLE: EXAMPLE_CODE})
    return manifest


def _model(source: Source) -> Recurrent[Any]:
    if isinstance(source, Bank):
        return load(source).model
    if source.finished is None:
        raise RunError(f"{source.path} is not finished; train it to its end, then export it")
    model = load_model(source)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > LARGEST:
        raise RunError(f"the weights of {source.path} take {size / 2**30:.1f} GiB; an .onnx file ends at 2")
    return model


def _rows_to_check(source: Source, bank: Bank | None) -> Bank | None:
    """The bank on whose rows the graphs are checked.

    Raises:
        RunError: the run's bank was replaced by another, or a bank of another encoder is given.
    """
    if isinstance(source, Bank):
        return source
    if bank is None and source.origin.bank_path and (Path(source.origin.bank_path) / bank_layout.MANIFEST).exists():
        bank = bank_of(source)
    if bank is not None:
        check_encoder(source, bank)
    return bank


def _facts(source: Source, model: Recurrent[Any]) -> dict[str, Any]:
    """The entries of the manifest about the model and its vectors."""
    if isinstance(source, Bank):
        settings, bank, encoder = shipped_settings(), source.fingerprint, source.manifest.encoder_fingerprint
    else:
        settings, bank, encoder = source.settings, source.origin.bank, source.origin.encoder
    weights = SHIPPED_FILE.read_bytes() if isinstance(source, Bank) else (source.path / BEST).read_bytes()
    return {
        "kind": KIND,
        "format": FORMAT,
        "nextvec": version("nextvec"),
        "model": settings.model,
        "settings": frozen.to_json(settings),
        "dim": model.dim,
        "num_queries": model.num_queries,
        "width": model.width,
        "sharpness": float(model.sharpness.detach()),
        "scores": _scores(model),
        "bank": bank,
        "encoder": encoder,
        "weights": hashlib.sha256(weights).hexdigest(),
        "opset": OPSET,
        "vectors": "unit length, float32, of the encoder above" + ("; y too has unit length" if model.num_queries == 1 else ""),
        "start": "zeros in every tensor of the state",
    }


def _scores(model: Recurrent[Any]) -> str:
    """How the scores of candidates follow from ``y``, in words."""
    candidate = "mapped row, the output of candidates.onnx for the candidate" if model.maps_candidates else "candidate's vector"
    if model.num_queries == 1:
        return f"score = y . c, where c is the {candidate}"
    return (
        "y holds num_queries queries q of the given width, one after another, then the log weight w of each; "
        f"score = log(sum over the queries of exp(sharpness (q . c) + w)) / sharpness, where c is the {candidate}"
    )
