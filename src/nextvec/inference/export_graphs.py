"""ONNX graphs of a model: one step, a whole passage as a scan over blocks of steps, and the map of candidates."""

# Axes: B passages, T positions, C candidates, D width.

import importlib
import logging
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nextvec.errors import RunError, SettingsError
from nextvec.inference.forms import Forms
from nextvec.inference.states import leaf_names, like, tensors
from nextvec.models import Recurrent

OPSET = 20
BLOCK = 16  # vectors of one block: short passages are padded little, and long ones are as fast as with 64


@dataclass(frozen=True)
class StateTensor:
    """One tensor of a model's state: its name, its full shape for one passage, its batch axis and its dtype."""

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


class Graphs(NamedTuple):
    """Serialised ONNX models.

    Attributes:
        step, passage: read vectors.
        candidates: maps candidates; None where the scores compare the rows themselves.
        places: the state tensors that the step takes.
    """

    step: bytes
    passage: bytes
    candidates: bytes | None
    places: list[StateTensor]


def graphs(model: Recurrent[Any]) -> Graphs:
    """The graphs of a model.

    Args:
        model: in ``eval`` mode, on the CPU, float32.

    Raises:
        RunError: PyTorch cannot express the model in ONNX.
    """
    traceable = model.traceable()
    block = traceable.run_length or BLOCK
    places = _places(traceable)
    step = _traced(_Reading(traceable, traceable.step), torch.zeros(2, model.dim), places)
    body = _traced(_Reading(traceable, traceable.run), torch.zeros(2, block, model.dim), places)
    passage = _scanned(body, places, block, model.dim, model.output_width)
    candidates = _mapping(traceable).SerializeToString() if model.maps_candidates else None
    return Graphs(step.SerializeToString(), passage.SerializeToString(), candidates, places)


class _Reading(nn.Module):
    """``step`` or ``run`` of a model, with every tensor of the state as an argument and as a result."""

    def __init__(self, model: Recurrent[Any], read: Callable[[Any, Tensor], tuple[Any, Tensor]]) -> None:
        super().__init__()
        self.model = model
        self.read = read
        self.start = Forms(model).full_start(2)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        given = iter(state)
        # A window of one vector and a memory of size 0 have tensors without entries, which a graph cannot take as inputs.
        before = [_empty(leaf, x) if 0 in leaf.shape else next(given) for leaf in tensors(self.start)]
        after, y = self.read(like(self.start, before), x)
        return (y, *(tensor for tensor in tensors(after) if 0 not in tensor.shape))


class _Mapping(nn.Module):
    """The map of candidates of a model."""

    def __init__(self, model: Recurrent[Any]) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor) -> Tensor:
        return self.model.candidates(rows)


def _empty(leaf: Tensor, x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[0], *leaf.shape[1:], dtype=leaf.dtype)  # len(x) would be a constant


def _places(model: Recurrent[Any]) -> list[StateTensor]:
    forms = Forms(model)
    one, two = (forms.full_start(batch) for batch in (1, 2))
    return [
        StateTensor(
            name, tuple(a.shape), next(n for n, (i, j) in enumerate(zip(a.shape, b.shape, strict=True)) if i != j), a.dtype
        )
        for name, a, b in zip(leaf_names(one), tensors(one), tensors(two), strict=True)
        if 0 not in a.shape
    ]


def _traced(reading: _Reading, x: Tensor, places: Sequence[StateTensor]) -> Any:
    """The ONNX model of ``reading``, for any batch size.

    The traced example has a batch of two, because PyTorch treats a batch of one
    as a constant. Every state tensor gets zeros of its own, because PyTorch
    merges inputs that are the same tensor.
    """
    batch = torch.export.Dim("batch")
    state = tuple(place.zeros(len(x)) for place in places)
    return _converted(
        reading,
        (x, *state),
        ({0: batch}, tuple({place.batch_axis: batch} for place in places)),
        ["x", *(place.name for place in places)],
        ["y", *(f"after_{place.name}" for place in places)],
    )


def _mapping(model: Recurrent[Any]) -> Any:
    """The ONNX model of the map of candidates, for any number of them."""
    count = {0: torch.export.Dim("count")}
    return _converted(_Mapping(model), (torch.zeros(2, model.dim),), (count,), ["rows"], ["mapped"])


def _converted(
    module: nn.Module, example: tuple[Tensor, ...], sizes: tuple[Any, ...], inputs: list[str], outputs: list[str]
) -> Any:
    """
    Args:
        example: arguments to trace with.
        sizes: for each argument of ``forward``, the axes whose size is free.

    Raises:
        RunError: PyTorch cannot express the module in ONNX.
    """
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(module.eval(), example, dynamic_shapes=sizes, strict=False)
            traced: Any = torch.onnx.export(
                program, input_names=inputs, output_names=outputs, opset_version=OPSET, dynamo=True, verbose=False
            )
    except RuntimeError as error:
        name, why = type(module.model).__name__, str(error).splitlines()[0]
        raise RunError(f"PyTorch {torch.__version__} cannot express {name} in ONNX: {why}") from error
    return _plain(traced.model_proto)


@contextmanager
def _quiet() -> Generator[None]:
    """Hide the messages of PyTorch's exporter about torchvision and deprecations, which a user cannot act on."""
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
    """The model without documentation strings: the exporter writes the path and line of the source code into every node."""
    onnx = library("onnx")
    graph = traced.graph
    for described in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        described.doc_string = ""
        del described.metadata_props[:]
    bare = onnx.helper.make_graph(graph.node, "nextvec", graph.input, graph.output, graph.initializer)
    return _model(bare, traced.ir_version)


def _scanned(body: Any, places: Sequence[StateTensor], block: int, dim: int, width: int) -> Any:
    """A whole passage as a Scan over blocks; the last block is padded with zeros, whose results are cut off."""
    helper, compose = library("onnx").helper, library("onnx.compose")
    node, types = helper.make_node, library("onnx").TensorProto
    graph = compose.add_prefix_graph(body.graph, "block/")
    x, *before = graph.input
    y, *after = graph.output
    read = helper.make_graph(graph.node, "block", [*before, x], [*after, y], graph.initializer)
    constants = {"none": [0], "one": [1], "size": [block], "blocks": [0, -1, block, dim], "rows": [0, -1, width]}
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
        sizes = [f"state/{place.name}/{axis}" for axis in range(len(place.shape))]
        constants.update({size: [n] for size, n in zip(sizes, place.shape, strict=True)})
        sizes[place.batch_axis] = "batch"
        zero = helper.make_tensor("zero", argument.type.tensor_type.elem_type, [1], [0])
        nodes.append(node("Concat", sizes, [f"state/{place.name}/shape"], axis=0))
        nodes.append(node("ConstantOfShape", [f"state/{place.name}/shape"], [f"state/{place.name}"], value=zero))
    starts = [f"state/{place.name}" for place in places]  # a model may name its state as a node below
    ends = [f"{start}/end" for start in starts]
    scan = {"body": read, "num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [1]}
    nodes += [
        node("Scan", [*starts, "in_blocks"], [*ends, "read"], **scan),
        node("Reshape", ["read", "rows"], ["all"]),
        node("Slice", ["all", "none", "length", "one"], ["y"]),
    ]
    used = {name for n in nodes for name in n.input}
    values = [helper.make_tensor(name, types.INT64, [len(v)], v) for name, v in constants.items() if name in used]
    given, answer = (
        helper.make_tensor_value_info(name, types.FLOAT, ["batch", "length", size]) for name, size in (("x", dim), ("y", width))
    )
    return _model(helper.make_graph(nodes, "nextvec", [given], [answer], values), body.ir_version)


def _model(graph: Any, ir_version: int) -> Any:
    helper = library("onnx").helper
    opset = [helper.make_opsetid("", OPSET)]
    made_by = {"producer_name": "nextvec", "producer_version": version("nextvec")}
    return helper.make_model(graph, opset_imports=opset, ir_version=ir_version, **made_by)


def library(name: str) -> Any:
    """An optional library.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SettingsError(f'exporting a model needs {name}, which is not installed: pip install "nextvec[onnx]"') from None
