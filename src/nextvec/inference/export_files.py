"""The folder of an export: its files, and the entries of its manifest."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nextvec.bank import layout as bank_layout
from nextvec.errors import RunError
from nextvec.inference.export_graphs import library

KIND, FORMAT = "nextvec onnx export", 2
STEP, PASSAGE, CANDIDATES = "step.onnx", "passage.onnx", "candidates.onnx"
MANIFEST, EXAMPLE = "manifest.json", "example.py"

EXAMPLE_CODE = '''\
"""python example.py CONTEXT.npy CANDIDATES.npy: the candidates [N, D] expected next after a context [T, D], best first."""
import json, pathlib, sys
import numpy as np, onnxruntime

folder = pathlib.Path(__file__).parent
manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
opened = lambda part: onnxruntime.InferenceSession(str(folder / manifest[part]["file"]), providers=["CPUExecutionProvider"])
step, places = opened("step"), manifest["state"]
state = {p["input"]: np.zeros([1 if n == "batch" else n for n in p["shape"]], p["dtype"]) for p in places}
loaded = (np.load(file).astype(np.float32) for file in sys.argv[1:3])
context, candidates = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in loaded)
for vector in context:
    y, *after = step.run(None, {"x": vector[None], **state})
    state = dict(zip(state, after))
mapped = opened("candidates").run(None, {"rows": candidates})[0] if manifest["candidates"] else candidates
queries, width, sharpness = (manifest[name] for name in ("num_queries", "width", "sharpness"))
scores = mapped @ y[0, : queries * width].reshape(queries, width).T
if queries > 1:
    scores = np.logaddexp.reduce(sharpness * scores + y[0, queries * width :], axis=1, keepdims=True) / sharpness
scores, known = scores[:, 0], context  # print no vector twice, and none of the context
for n in np.argsort(-scores, kind="stable"):
    if len(known) < len(context) + 5 and np.linalg.norm(known - candidates[n], axis=1).min() > 1e-3:
        print(n, f"{scores[n]:.4f}")
        known = np.vstack([known, candidates[n]])
'''


def described(file: str, graph: bytes) -> dict[str, Any]:
    """The entry of a graph file in the manifest, read from the graph: file name, hash, inputs and outputs."""
    onnx = library("onnx")
    model = onnx.load_from_string(graph)

    def entry(value: Any) -> dict[str, Any]:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        return {"name": value.name, "shape": [d.dim_param or d.dim_value for d in tensor.shape.dim], "dtype": dtype}

    inputs, outputs = ([entry(value) for value in values] for values in (model.graph.input, model.graph.output))
    return {"file": file, "sha256": hashlib.sha256(graph).hexdigest(), "inputs": inputs, "outputs": outputs}


def refuse_foreign(out: Path) -> None:
    """
    Raises:
        RunError: ``out`` exists and is not an export, or holds other files too.
    """
    if not out.exists():
        return
    names = {entry.name for entry in out.iterdir()} if out.is_dir() else {""}
    ours = not names or (names <= {STEP, PASSAGE, CANDIDATES, MANIFEST, EXAMPLE} and _is_export(out / MANIFEST))
    if not ours:
        raise RunError(f"{out} exists and is not an export; choose another name")


def _is_export(manifest: Path) -> bool:
    if not manifest.is_file():
        return False
    content = bank_layout.read_json(manifest)
    return isinstance(content, dict) and content.get("kind") == KIND


def write(out: Path, files: dict[str, bytes | str]) -> None:
    """Write the folder in one rename; an earlier export in the same place is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as beside:
        folder = Path(beside) / "new"
        folder.mkdir()
        for name, content in files.items():
            bank_layout.write_atomically(folder / name, content)
        if out.exists():
            out.rename(Path(beside) / "old")
        folder.rename(out)
