"""Record what the installed nextvec computes on three small banks, for `same_figures.py`.

    python benchmarks/figures.py FOLDER

FOLDER holds the inputs that `same_figures.py` writes. Every figure goes to
FOLDER/figures.json as {bank: {thing: values}}; an array is its type, its shape
and its bytes. A thing that fails is recorded with its error.
"""

import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, load_file

import nextvec as nv
from nextvec.cli.main import main as nextvec

BANKS = ("topics", "items", "text")
MODELS: dict[str, dict[str, object]] = {
    "gru": {"hidden": 32, "layers": 1},
    "lstm": {"hidden": 32, "layers": 1},
    "transformer": {"hidden": 32, "layers": 1},
    "mixture": {"hidden": 32},
    "hierarchical": {"hidden": 32, "layers": 1},
    "linear": {"hidden": 32, "layers": 1},
    "experts": {"hidden": 32, "slots": 16, "working": 8},
    "published": {"hidden": 32, "layers": 1},
}
OWN = {"hidden": 32, "slots": 16, "working": 8}  # of the default model
WEIGHTS = ("float32", "bfloat16", "int8")
PHASES = "phase1,phase4,phase1-published"
SMALL = {"updates": 6, "evaluate_every": 3, "batch": 3, "negatives": 16, "lr": 0.01, "warmup": 0}
HASH = 32  # bytes between the first line of a snapshot and its tensors
K = 10


def verb(*arguments: object, code: int = 0) -> dict[str, Any]:
    """What ``nextvec ARGUMENTS --json`` prints."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        found = nextvec([*map(str, arguments), "--json"])
    if found != code:
        raise RuntimeError(f"nextvec {' '.join(map(str, arguments))}: exit code {found}, not {code}")
    return json.loads(printed.getvalue())


def sets(**other: object) -> list[str]:
    return [part for name, value in {**SMALL, **other}.items() for part in ("--set", f"{name}={value}")]


def array(values: np.ndarray | torch.Tensor) -> dict[str, Any]:
    tensor = torch.from_numpy(np.ascontiguousarray(values)) if isinstance(values, np.ndarray) else values.contiguous()
    held = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return {"array": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "bytes": held.hex()}


def file(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".safetensors":
        return {name: array(tensor) for name, tensor in load_file(path).items()}
    return array(np.fromfile(path, np.uint8))


def ingested(name: str) -> dict[str, Any]:
    source = Path(f"{name}.texts") if name == "text" else Path(f"{name}.npz")
    facts = verb("ingest", source, f"{name}.bank")
    files = {path.name: file(path) for path in sorted(Path(f"{name}.bank").iterdir()) if path.name != "verified.json"}
    return {"facts": facts, "files": files, "inspect": verb("inspect", f"{name}.bank")}


def audited(name: str) -> dict[str, Any]:
    with redirect_stdout(io.StringIO()) as printed:
        code = nextvec(["audit", f"{name}.bank", "--json"])
    return {"code": code, **json.loads(printed.getvalue())}


def trained(name: str, run: str, **other: object) -> dict[str, Any]:
    folder = Path(f"{name}.{run}")
    printed = verb("train", "default", folder, "--bank", f"{name}.bank", *sets(context=20, pool=30, patience=99, **other))
    held = ("run.json", "training_history.json", "best.safetensors")
    return {"printed": printed, **{part: file(folder / part) for part in held}}


def evaluated(name: str) -> dict[str, Any]:
    lanes = verb("lanes", f"{name}.bank", "--clusters", 4, "--out", f"{name}.lanes")
    ways: dict[str, tuple[object, ...]] = {"as trained": (), "context 1": ("--context", 1), "valid": ("--split", "valid")}
    ways["lanes"] = ("--lanes", f"{name}.lanes")
    found = {way: verb("evaluate", f"{name}.run", "--pool", "all", *arguments) for way, arguments in ways.items()}
    return {"lanes census": lanes, "pool of 50": verb("evaluate", f"{name}.run", "--pool", 50), **found}


def compared(name: str) -> dict[str, Any]:
    return verb("compare", f"{name}.run", f"{name}.gru", "--pool", "all")


def phased(name: str) -> dict[str, Any]:
    recipes = ("--recipes", PHASES, "--seeds", 2, "--pools", "30,58,all")
    small = sets(**OWN, pool=30, accumulate=1, coherence=-1, **({} if name == BANKS[0] else {"context": 20}))
    return verb("phases", f"{name}.phases", "--bank", f"{name}.bank", *recipes, *small, "--lanes", f"{name}.lanes")


def expected(found: list[Any], bank: Any) -> list[dict[str, Any]]:
    """Answers, with all rows of the bank that hold each."""
    return [
        {"row": e.row, "score": e.score, "document": e.document, "text": e.text, "count": e.count}
        | {"rows": array(bank.distinct.rows(e.row))}
        for e in found
    ]


def snapshot(data: bytes) -> dict[str, Any]:
    """The facts and the tensors of a snapshot: a line, a hash, a safetensors file."""
    content = data[data.index(b"\n") + 1 + HASH :]
    length = int.from_bytes(content[:8], "little")
    facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["session"])
    return {"facts": facts, "tensors": {name: array(tensor) for name, tensor in load(content).items()}}


def answered(name: str, run: str) -> dict[str, Any]:
    """Sessions read one vector, many vectors, and beside each other; in every weight format."""
    bank = nv.Bank.open(f"{name}.bank")
    rows = [bank.document(m).astype(np.float32) for m in range(3)]
    found: dict[str, Any] = {}
    for weights in WEIGHTS:
        engine = nv.Engine.open(f"{name}.{run}", bank, None, weights)
        session = engine.session()
        read = [array(session.push_many(rows[0][:25]))]
        answers = [expected(session.predict(K), bank)]
        for row in rows[0][25:30]:
            read.append(array(session.push(row)))
            answers.append(expected(session.predict(K), bank))
        other = session.copy()
        read.append(array(other.push(-rows[1][0])))
        answers += [expected(other.predict(K, [1, 2]), bank), expected(session.predict(len(bank)), bank)]
        many = [engine.session() for _ in rows]
        for n in range(8):
            read.append(array(engine.step(many, np.stack([held[n] for held in rows]))))
        answers += [expected(each, bank) for each in engine.predict(many, K)]
        if bank.manifest.text:
            read.append(array(other.push_text("A class definition is an executable statement.")))
            answers.append(expected(other.predict(K), bank))
        restored = engine.restore(session.snapshot())
        read.append(array(restored.push(rows[2][0])))
        found[weights] = {
            "read": read,
            "answers": answers,
            "nearest": array(engine.nearest(rows[1] + 0.05)),
            "snapshot": snapshot(session.snapshot()),
        }
    return found


def predicted(name: str) -> dict[str, Any]:
    """Batch predictions, as ``nextvec predict --input`` writes them."""
    from pyarrow import parquet

    facts = verb("predict", f"{name}.run", "--input", f"{name}.bank", "--output", f"{name}.parquet", "--vectors", "-k", 3)
    facts.pop("bytes")  # of the file, which holds the version of the package that wrote it
    return {"facts": facts, "table": parquet.read_table(f"{name}.parquet").to_pydict()}


def simulated() -> dict[str, Any]:
    return verb("rollout", "simulate", "--rollouts", 2, "--requests", 20_000)


def things() -> list[tuple[str, str, Callable[[], Any]]]:
    """Bank, thing, and what computes it, in the order in which one needs another."""
    found: list[tuple[str, str, Callable[[], Any]]] = []
    for name in BANKS:
        found += [
            (name, "ingest, inspect", lambda name=name: ingested(name)),
            (name, "audit", lambda name=name: audited(name)),
            (name, "train", lambda name=name: trained(name, "run", **OWN)),
            (name, "train, gru", lambda name=name: trained(name, "gru", model="gru", **MODELS["gru"])),
            (name, "lanes, evaluate", lambda name=name: evaluated(name)),
            (name, "compare", lambda name=name: compared(name)),
            (name, "answers, snapshot", lambda name=name: answered(name, "run")),
            (name, "predict", lambda name=name: predicted(name)),
            (name, "phases", lambda name=name: phased(name)),
        ]
    for model, small in MODELS.items():
        if model != "gru":
            run = lambda model=model, small=small: trained(BANKS[0], model, model=model, **small)  # noqa: E731
            found.append((BANKS[0], f"train, {model}", run))
    for model in MODELS:
        found.append((BANKS[0], f"answers, {model}", lambda model=model: answered(BANKS[0], model)))
    return [*found, ("none", "rollout simulate", simulated)]


def main(folder: Path) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    figures: dict[str, dict[str, Any]] = {}
    for bank, thing, compute in things():
        try:
            figures.setdefault(bank, {})[thing] = compute()
        except Exception:
            figures[bank][thing] = {"failed": traceback.format_exc().splitlines()[-1]}
            traceback.print_exc()
    Path("figures.json").write_text(json.dumps(figures).replace(str(folder.resolve()), "."))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
