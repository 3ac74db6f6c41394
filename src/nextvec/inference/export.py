"""A trained model as ONNX graphs: one step, a whole passage, and what a program without nextvec must know to use them."""

# Axes: B passages, T positions, D width, H hidden, K means, N rows.

import hashlib
import importlib
import json
import logging
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from nextvec import settings as frozen
from nextvec.bank import Bank
from nextvec.bank import layout as bank_layout
from nextvec.errors import RunError, SettingsError
from nextvec.inference.engine import bank_of
from nextvec.inference.states import like
from nextvec.models import Hierarchical, Recurrent
from nextvec.models.window_attention import Window, WindowAttention
from nextvec.models.working_memory import Held, WorkingMemory
from nextvec.runs import Run, load_model
from nextvec.runs.loading import check_encoder
from nextvec.runs.run import BEST

KIND, FORMAT = "nextvec onnx export", 1
STEP, PASSAGE, MANIFEST, EXAMPLE = "step.onnx", "passage.onnx", "manifest.json", "example.py"
LIBRARIES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 20
TOLERANCE = 1e-4  # largest difference between the graphs and the model, of entries of unit vectors
BLOCK = 16  # vectors of a passage that are computed at once: short passages waste little, long ones are as fast as by 64
LONGEST = 2048  # vectors of a checked passage, however many a window holds
LARGEST = 2**31 - 2**24  # bytes of weights: protobuf ends at 2 GiB

EXAMPLE_CODE = '''\
"""python example.py CONTEXT.npy CANDIDATES.npy: the candidates [N, D] expected next after a context [T, D], best first."""
import json, pathlib, sys
import numpy as np, onnxruntime

folder = pathlib.Path(__file__).parent
session = onnxruntime.InferenceSession(str(folder / "step.onnx"), providers=["CPUExecutionProvider"])
places = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["state"]
state = {p["input"]: np.zeros([1 if n == "batch" else n for n in p["shape"]], p["dtype"]) for p in places}
loaded = (np.load(file).astype(np.float32) for file in sys.argv[1:3])
context, candidates = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in loaded)
for vector in context:
    expected, *after = session.run(None, {"x": vector[None], **state})
    state = dict(zip(state, after))
scores, known = candidates @ expected[0], context  # no vector is named twice, and none that was read
for n in np.argsort(-scores, kind="stable"):
    if len(known) < len(context) + 5 and np.linalg.norm(known - candidates[n], axis=1).min() > 1e-3:
        print(n, f"{scores[n]:.4f}")
        known = np.vstack([known, candidates[n]])
'''


def export(run: Run, out: str | Path, bank: Bank | None = None) -> dict[str, Any]:
    """Write a folder that predicts without nextvec and without PyTorch; the manifest that lies in it.

    ``step.onnx`` is ``model.step``: one vector per passage and every tensor of
    the state in, the prediction and the state after it out. Its shapes never
    change: windows and the working memory have their full size from the start,
    with places that are not filled yet, so that the start is zeros throughout.

    ``passage.onnx`` is ``model.forward``: a Scan whose body is ``model.run``
    over 16 vectors, the last of them filled up with zeros that no earlier
    position can see. So it is the model's own code at every length, keeps to
    the memory of one block, and takes a half to a sixth of the time of
    stepping.

    Both are run in ONNX Runtime beside the model before anything is written:
    random unit vectors and, where the run's bank is still there, its rows; one
    and three passages; one vector, seven, and more than any window holds
    (2048 at most). An earlier export in the same place is replaced.

    Args:
        run: finished.
        out: the folder to make.
        bank: whose rows the graphs are checked on; the run's own when None, if it is still there.

    Raises:
        RunError: the run is not finished, ``out`` holds something else, the
            run's bank was replaced by another, the weights are larger than an .onnx file can be, or an exported graph
            differs from the model by more than 1e-4.
        SettingsError: onnx, onnxruntime or onnxscript is not installed.
    """
    for name in LIBRARIES:
        _library(name)
    out = Path(out).resolve()
    _refuse_foreign(out)
    if run.finished is None:
        raise RunError(f"{run.path} is not finished; train it to its end, then export it")
    model, _ = load_model(run)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > LARGEST:
        raise RunError(f"the weights of {run.path} take {size / 2**30:.1f} GiB; an .onnx file ends at 2")
    passages = _passages(run, bank, min(LONGEST, BLOCK + _memory(model)))  # first: what is refused costs nothing
    step, passage, places = graphs(model)
    differences = _differences(model, step, passage, places, passages)
    manifest = {
        "kind": KIND,
        "format": FORMAT,
        "nextvec": version("nextvec"),
        "model": run.settings.model,
        "settings": frozen.to_json(run.settings),
        "dim": model.dim,
        "bank": run.origin.bank,
        "encoder": run.origin.encoder,
        "weights": hashlib.sha256((run.path / BEST).read_bytes()).hexdigest(),
        "opset": OPSET,
        "vectors": "unit length, float32, of the encoder above; y too has unit length",
        "start": "zeros in every tensor of the state",
        "state": [place.to_json() for place in places],
        "step": _described(STEP, step),
        "passage": _described(PASSAGE, passage),
        "checked": {
            "largest_difference": differences,
            "tolerance": TOLERANCE,
            "passages": [list(x.shape[:2]) for x in passages],
            "torch": torch.__version__,
            "onnxruntime": _library("onnxruntime").__version__,
        },
    }
    _write(out, {STEP: step, PASSAGE: passage, MANIFEST: json.dumps(manifest, indent=1) + "\n", EXAMPLE: EXAMPLE_CODE})
    return manifest


@dataclass(frozen=True)
class Place:
    """One tensor of a model's state: its name, its full shape for one passage, which axis counts passages, its type."""

    name: str
    shape: tuple[int, ...]
    batch_axis: int
    dtype: torch.dtype

    def zeros(self, batch: int) -> Tensor:
        shape = [batch if axis == self.batch_axis else n for axis, n in enumerate(self.shape)]
        return torch.zeros(shape, dtype=self.dtype)

    def to_json(self) -> dict[str, Any]:
        shape = ["batch" if axis == self.batch_axis else n for axis, n in enumerate(self.shape)]
        dtype = str(self.dtype).removeprefix("torch.")
        return {"input": self.name, "output": f"after_{self.name}", "shape": shape, "dtype": dtype}


def graphs(model: Recurrent[Any]) -> tuple[bytes, bytes, list[Place]]:
    """The step and the passage as serialised ONNX models, and the tensors of the state that go into the step.

    Args:
        model: in ``eval`` mode, on the processor, float32.

    Raises:
        RunError: PyTorch cannot express the model in ONNX.
    """
    steady = Unbranched(model) if isinstance(model, Hierarchical) else model
    block = 1 if isinstance(model, Hierarchical) else BLOCK
    places = _places(steady)
    step = _traced(_Reading(steady, steady.step), torch.zeros(2, model.dim), places)
    body = _traced(_Reading(steady, steady.run), torch.zeros(2, block, model.dim), places)
    return step.SerializeToString(), _scanned(body, places, block, model.dim).SerializeToString(), places


class UnbranchedState(NamedTuple):
    """Exponential means, where the two GRUs stand, and how many vectors of its chunk each passage has read."""

    means: Float[Tensor, "B K D"]
    local: Float[Tensor, "layers B H"]
    whole: Float[Tensor, "layers B H"]
    num_read: Int64[Tensor, " B"]


class Unbranched(Recurrent[UnbranchedState]):
    """A hierarchical model read one vector at a time, whose chunk ends are values and not branches of the program.

    The global GRU computes its step after every vector, and what it computed
    is kept where a chunk has ended.
    """

    def __init__(self, model: Hierarchical) -> None:
        super().__init__()
        self.dim = model.dim
        self.model = model

    def start(self, batch: int) -> UnbranchedState:
        means, reading = self.model.start(batch)
        return UnbranchedState(means, reading.local, reading.whole, torch.zeros(batch, dtype=torch.int64))

    def run(self, state: UnbranchedState, x_BTD: Float[Tensor, "B 1 D"]) -> tuple[UnbranchedState, Float[Tensor, "B 1 D"]]:
        model = self.model
        means, centred_BTD, means_BTKD = model.trunk.read(state.means, x_BTD)
        h_BTH, local = model.local(centred_BTD * self.dim**0.5, state.local)
        _, whole = model.whole(h_BTH, state.whole)
        residual_BTD = model.residual(torch.cat([h_BTH, state.whole[-1][:, None]], dim=-1))
        num_read = state.num_read + 1
        ended_B = num_read == model.chunk
        after = UnbranchedState(
            means,
            torch.where(ended_B[:, None], torch.zeros_like(local), local),
            torch.where(ended_B[:, None], whole, state.whole),
            torch.where(ended_B, torch.zeros_like(num_read), num_read),
        )
        return after, model.trunk.finish(model.trunk.mix(means_BTKD), residual_BTD)


class _Reading(nn.Module):
    """``step`` or ``run`` of a model, with every tensor of the state an argument and an answer of its own."""

    def __init__(self, model: Recurrent[Any], read: Callable[[Any, Tensor], tuple[Any, Tensor]]) -> None:
        super().__init__()
        self.model = model
        self.read = read
        self.start = _full(model, model.start(2))

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        given = iter(state)
        # A window of one vector and a memory of none hold nothing; no graph takes a tensor without entries.
        before = [_nothing(leaf, x) if 0 in leaf.shape else next(given) for _, leaf in _named(self.start)]
        after, y = self.read(like(self.start, before), x)
        return (y, *(tensor for _, tensor in _named(after) if 0 not in tensor.shape))


def _nothing(leaf: Tensor, x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[0], *leaf.shape[1:], dtype=leaf.dtype)  # len(x) would be a constant


def _places(model: Recurrent[Any]) -> list[Place]:
    one, two = (_named(_full(model, model.start(batch))) for batch in (1, 2))
    return [
        Place(name, tuple(a.shape), next(n for n, (i, j) in enumerate(zip(a.shape, b.shape, strict=True)) if i != j), a.dtype)
        for (name, a), (_, b) in zip(one, two, strict=True)
        if 0 not in a.shape
    ]


def _full(model: Recurrent[Any], state: Any) -> Any:
    """The start with all the places that windows and the working memory will ever have, not one of them filled."""
    if isinstance(state, Window | Held):
        size = _memory(model) - isinstance(state, Window)
        return type(state)(*(tensor.new_zeros(len(tensor), size, *tensor.shape[2:]) for tensor in state))
    if isinstance(state, Tensor):
        return state
    parts = [_full(model, part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def _memory(model: Recurrent[Any]) -> int:
    """After how many vectors a model first forgets one, or begins a new chunk; 0 where nothing happens at a fixed count."""
    if isinstance(model, Hierarchical):
        return model.chunk
    return max((part.size for part in model.modules() if isinstance(part, WindowAttention | WorkingMemory)), default=0)


def _named(state: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    """Every tensor of a state in order, named by the fields that lead to it."""
    if isinstance(state, Tensor):
        return [(prefix or "state", state)]
    names: Sequence[Any] = getattr(state, "_fields", range(len(state)))
    paths = [f"{prefix}_{name}" if prefix else str(name) for name in names]
    return [pair for path, part in zip(paths, state, strict=True) for pair in _named(part, path)]


def _traced(reading: _Reading, x: Tensor, places: Sequence[Place]) -> Any:
    """The ONNX model of a reading, any number of passages at once.

    The example has two passages, because PyTorch takes a batch of one for a
    constant, and a zero tensor of its own for every place, because it takes
    one that is given twice for one input.
    """
    batch = torch.export.Dim("batch")
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                reading.eval(),
                (x, *(place.zeros(len(x)) for place in places)),
                dynamic_shapes=({0: batch}, tuple({place.batch_axis: batch} for place in places)),
                strict=False,
            )
            traced: Any = torch.onnx.export(
                program,
                input_names=["x", *(place.name for place in places)],
                output_names=["y", *(f"after_{place.name}" for place in places)],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except RuntimeError as error:
        name, why = type(reading.model).__name__, str(error).splitlines()[0]
        raise RunError(f"PyTorch {torch.__version__} cannot express {name} in ONNX: {why}") from error
    return _plain(traced.model_proto)


@contextmanager
def _quiet() -> Generator[None]:
    """PyTorch's exporter speaks of torchvision and of its own future; neither concerns who exports."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _plain(traced: Any) -> Any:
    """The nodes and weights alone: the exporter also notes the source line, with its path, that each node came from."""
    onnx = _library("onnx")
    graph = traced.graph
    for described in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        described.doc_string = ""
        del described.metadata_props[:]
    bare = onnx.helper.make_graph(graph.node, "nextvec", graph.input, graph.output, graph.initializer)
    return _model(bare, traced.ir_version)


def _scanned(body: Any, places: Sequence[Place], block: int, dim: int) -> Any:
    """A passage as a Scan over its blocks, the last one filled up with zeros whose answers are cut off."""
    helper, compose = _library("onnx").helper, _library("onnx.compose")
    node, types = helper.make_node, _library("onnx").TensorProto
    graph = compose.add_prefix_graph(body.graph, "block/")
    x, *before = graph.input
    y, *after = graph.output
    read = helper.make_graph(graph.node, "block", [*before, x], [*after, y], graph.initializer)
    constants = {"none": [0], "one": [1], "size": [block], "blocks": [0, -1, block, dim], "rows": [0, -1, dim]}
    nodes = [
        node("Shape", ["x"], ["batch"], start=0, end=1),
        node("Shape", ["x"], ["length"], start=1, end=2),
        node("Neg", ["length"], ["negative"]),
        node("Mod", ["negative", "size"], ["lacking"]),
        node("Concat", ["none", "lacking"], ["padding"], axis=0),
        node("Pad", ["x", "padding", "", "one"], ["padded"]),
        node("Reshape", ["padded", "blocks"], ["in_blocks"]),
    ]
    for place, argument in zip(places, before, strict=True):
        sizes = [f"{place.name}/{axis}" for axis in range(len(place.shape))]
        constants.update({size: [n] for size, n in zip(sizes, place.shape, strict=True)})
        sizes[place.batch_axis] = "batch"
        zero = helper.make_tensor("zero", argument.type.tensor_type.elem_type, [1], [0])
        nodes.append(node("Concat", sizes, [f"{place.name}/shape"], axis=0))
        nodes.append(node("ConstantOfShape", [f"{place.name}/shape"], [place.name], value=zero))
    starts, ends = [place.name for place in places], [f"{place.name}/end" for place in places]
    scan = {"body": read, "num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [1]}
    nodes += [
        node("Scan", [*starts, "in_blocks"], [*ends, "read"], **scan),
        node("Reshape", ["read", "rows"], ["all"]),
        node("Slice", ["all", "none", "length", "one"], ["y"]),
    ]
    used = {name for n in nodes for name in n.input}
    values = [helper.make_tensor(name, types.INT64, [len(v)], v) for name, v in constants.items() if name in used]
    shape = ["batch", "length", dim]
    given, answer = (helper.make_tensor_value_info(name, types.FLOAT, shape) for name in ("x", "y"))
    return _model(helper.make_graph(nodes, "nextvec", [given], [answer], values), body.ir_version)


def _model(graph: Any, ir_version: int) -> Any:
    helper = _library("onnx").helper
    opset = [helper.make_opsetid("", OPSET)]
    made_by = {"producer_name": "nextvec", "producer_version": version("nextvec")}
    return helper.make_model(graph, opset_imports=opset, ir_version=ir_version, **made_by)


def _passages(run: Run, bank: Bank | None, longest: int) -> list[Float32[np.ndarray, "B T D"]]:
    """What the graphs are checked on: one and three passages of unit vectors, random ones and the bank's."""
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal((b, t, run.origin.dim)).astype(np.float32) for b in (1, 3) for t in (1, 7, longest)]
    passages = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in drawn]
    if bank is None and run.origin.bank_path and (Path(run.origin.bank_path) / bank_layout.MANIFEST).exists():
        bank = bank_of(run)
    if bank is not None:
        check_encoder(run, bank)
        rows_ND = bank.rows[: 3 * longest].astype(np.float32)
        passages.append(rows_ND[None, :longest])
        passages.append(rows_ND[: len(rows_ND) // 3 * 3].reshape(3, -1, bank.dim)[:, :7])
    return passages


@torch.inference_mode()
def _differences(
    model: Recurrent[Any],
    step: bytes,
    passage: bytes,
    places: Sequence[Place],
    passages: Sequence[Float32[np.ndarray, "_ _ D"]],
) -> dict[str, float]:
    """The largest difference of each graph, in ONNX Runtime, from the model, which starts as it always does.

    Raises:
        RunError: it is above ``TOLERANCE``.
    """
    stepping, reading = _session(step), _session(passage)
    largest = {"step": 0.0, "passage": 0.0}
    for x_BTD in passages:
        wanted_BTD = model(torch.from_numpy(x_BTD)).numpy()
        answers = {"step": np.stack(list(_stepped(stepping, places, x_BTD)), 1), "passage": reading.run(None, {"x": x_BTD})[0]}
        for name, y_BTD in answers.items():
            difference = float(np.abs(y_BTD - wanted_BTD).max())
            if not difference <= TOLERANCE:  # NaN is not either
                read = " x ".join(map(str, x_BTD.shape[:2]))
                raise RunError(
                    f"the exported {name} differs from the model by {difference:.1e} on {read} vectors; "
                    f"at most {TOLERANCE:.0e} is allowed, so nothing was written"
                )
            largest[name] = max(largest[name], difference)
    return largest


def _stepped(
    session: Any, places: Sequence[Place], x_BTD: Float32[np.ndarray, "B T D"]
) -> Iterator[Float32[np.ndarray, "B D"]]:
    state = {place.name: place.zeros(len(x_BTD)).numpy() for place in places}
    for t in range(x_BTD.shape[1]):
        y_BD, *after = session.run(None, {"x": x_BTD[:, t], **state})
        state = dict(zip(state, after, strict=True))
        yield y_BD


def _session(graph: bytes) -> Any:
    runtime = _library("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _described(file: str, graph: bytes) -> dict[str, Any]:
    """What a program must know of a graph file, read from the graph itself."""
    onnx = _library("onnx")
    model = onnx.load_from_string(graph)

    def told(value: Any) -> dict[str, Any]:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        return {"name": value.name, "shape": [d.dim_param or d.dim_value for d in tensor.shape.dim], "dtype": dtype}

    inputs, outputs = ([told(value) for value in values] for values in (model.graph.input, model.graph.output))
    return {"file": file, "sha256": hashlib.sha256(graph).hexdigest(), "inputs": inputs, "outputs": outputs}


def _refuse_foreign(out: Path) -> None:
    """
    Raises:
        RunError: what lies there is not an export, or holds more than one.
    """
    if not out.exists():
        return
    names = {entry.name for entry in out.iterdir()} if out.is_dir() else {""}
    ours = not names or (names <= {STEP, PASSAGE, MANIFEST, EXAMPLE} and _is_export(out / MANIFEST))
    if not ours:
        raise RunError(f"{out} exists and is not an export; choose another name")


def _is_export(manifest: Path) -> bool:
    if not manifest.is_file():
        return False
    content = bank_layout.read_json(manifest)
    return isinstance(content, dict) and content.get("kind") == KIND


def _write(out: Path, files: dict[str, bytes | str]) -> None:
    """The whole folder appears at once; an export that lay there goes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as beside:
        folder = Path(beside) / "new"
        folder.mkdir()
        for name, content in files.items():
            bank_layout.write_atomically(folder / name, content)
        if out.exists():
            out.rename(Path(beside) / "old")
        folder.rename(out)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SettingsError(f'exporting a model needs {name}, which is not installed: pip install "nextvec[onnx]"') from None
