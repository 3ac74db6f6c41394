"""Lanes on disk, in a folder beside the bank: manifest, anchors, and a lane and a confidence for each row."""

# Axes: N rows, D width, L lanes, M documents, B rows of a block.

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Float16, Float32, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nextvec.bank import Bank
from nextvec.bank.layout import write_atomically
from nextvec.bank.mapped import mapped_array
from nextvec.bank.sequences import Rows
from nextvec.errors import DataError
from nextvec.lanes.clusters import MOST, blocks

FORMAT = 1
MANIFEST, ANCHORS, LANE, CONFIDENCE = "lanes.json", "anchors.safetensors", "lane.bin", "confidence.bin"
Kind = Literal["descriptions", "clusters", "labels", "chance"]


@dataclass(frozen=True, eq=False)
class Anchors:
    """A vector for each lane. A row of the same encoder gets the lane of the highest cosine minus price.

    Attributes:
        names: of the lanes.
        vectors: [L, D], unit length; zeros for a lane without rows or sentences.
        prices: [L], zeros unless lanes were made of equal size; 2 for a lane of zeros, so that no row gets this lane.
        temperature: of the softmax over lanes, which is the confidence.
    """

    names: tuple[str, ...]
    vectors: Float32[np.ndarray, "L D"]
    prices: Float32[np.ndarray, " L"]
    temperature: float

    @staticmethod
    def open(folder: str | Path, encoder: str, dim: int) -> "Anchors":
        """The anchors in a folder of lanes, for rows of any bank of the same encoder.

        Raises:
            DataError: no lanes there, damaged ones, or of another encoder or width.
        """
        folder = Path(folder)
        m = Manifest.read(folder)
        if (m.encoder, m.dim) != (encoder, dim):
            raise DataError(f"{folder} holds lanes for vectors of {m.encoder}, {m.dim} wide, not of {encoder}, {dim} wide")
        m.check_file(folder, ANCHORS)
        return m.anchors(folder)

    def scores(self, rows: Float[np.ndarray, "B D"]) -> Float32[np.ndarray, "B L"]:
        return rows.astype(np.float32) @ self.vectors.T - self.prices

    def assign(self, rows: Rows) -> tuple[UInt8[np.ndarray, " N"], Float16[np.ndarray, " N"]]:
        """The lane of each row and the confidence in it, block by block."""
        lane, confidence = np.empty(len(rows), np.uint8), np.empty(len(rows), np.float16)
        for start, block in blocks(rows):
            scores, part = self.scores(block), slice(start, start + len(block))
            lane[part] = scores.argmax(1)
            confidence[part] = _softmax_at(scores / self.temperature, lane[part])
        return lane, confidence

    def confidence(self, rows: Rows, lane: UInt8[np.ndarray, " N"]) -> Float16[np.ndarray, " N"]:
        """The softmax over lanes of score / temperature, at the lane that each row has."""
        confidence = np.empty(len(rows), np.float16)
        for start, block in blocks(rows):
            part = slice(start, start + len(block))
            confidence[part] = _softmax_at(self.scores(block) / self.temperature, lane[part])
        return confidence


@dataclass(frozen=True)
class Manifest:
    """The description of lanes on disk.

    Attributes:
        kind: how they were made: of descriptions, clusters, labels, or by chance.
        bank, encoder: fingerprints of the bank and of its encoder.
        names: of the lanes; table: digest of the table they come from, or empty.
        rows, dim: of the bank.
        temperature: see :class:`Anchors`; calibrated: whether it was fitted to labels, so that the confidence estimates
            the accuracy. Otherwise it follows from the margins alone.
        made: seed, sizes and other choices that decide the lanes.
        sizes, sha256: of every file.
        format: version of this layout.
    """

    kind: Kind
    bank: str
    encoder: str
    names: tuple[str, ...]
    table: str
    rows: int
    dim: int
    temperature: float
    calibrated: bool
    made: dict[str, Any]
    sizes: dict[str, int] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """
        Raises:
            DataError: the folder holds no lanes of this format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise DataError(f"{folder} holds no lanes: it has no {MANIFEST}")
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if values.get("format") != FORMAT:
                raise DataError(f"{path} has format {values.get('format')}; this version reads format {FORMAT}")
            values["names"] = tuple(map(str, values["names"]))
            manifest = Manifest(**values)
            if manifest.kind not in get_args(Kind) or not 1 <= len(manifest.names) <= MOST or not manifest.temperature > 0:
                raise ValueError(f"no lanes of kind {manifest.kind!r}, {len(manifest.names)} of them")
            if not {ANCHORS, LANE, CONFIDENCE} == manifest.sizes.keys() == manifest.sha256.keys():
                raise ValueError("files are missing")
            return manifest
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise DataError(f"{path} is damaged: {error}; make the lanes again") from None

    def check(self, folder: Path, bank: Bank) -> None:
        """
        Raises:
            DataError: the lanes are another bank's, or a file is not as it was written.
        """
        if (self.bank, self.encoder) != (bank.fingerprint, bank.manifest.encoder_fingerprint):
            raise DataError(
                f"{folder} holds lanes of bank {self.bank[:12]} ({self.encoder}), not of this one, {bank.fingerprint[:12]} "
                f"({bank.manifest.encoder_fingerprint}); make them of this bank"
            )
        if (self.rows, self.dim) != (len(bank), bank.dim):
            raise DataError(
                f"{folder / MANIFEST} is damaged: it states {self.rows} rows of width {self.dim}; make the lanes again"
            )
        for name in self.sizes:
            self.check_file(folder, name)

    def check_file(self, folder: Path, name: str) -> None:
        """
        Raises:
            DataError: the file is not as it was written.
        """
        path, wanted = folder / name, self.sizes[name]
        size = path.stat().st_size if path.is_file() else None
        if size != wanted or _sha256(path) != self.sha256[name]:
            got = "no file" if size is None else f"{size:,} bytes" if size != wanted else "not what was written"
            raise DataError(f"{path} is damaged: {got} where the manifest says {wanted:,} bytes; make the lanes again")

    def anchors(self, folder: Path) -> Anchors:
        """
        Raises:
            DataError: the file is damaged.
        """
        path = folder / ANCHORS
        try:
            tensors = load(path.read_bytes())
            anchors = Anchors(self.names, tensors["vectors"], tensors["prices"], self.temperature)
        except (SafetensorError, KeyError) as error:
            raise DataError(f"{path} is damaged: {error}; make the lanes again") from None
        if anchors.vectors.shape != (len(self.names), self.dim) or anchors.prices.shape != (len(self.names),):
            raise DataError(f"{path} is damaged: it is not {len(self.names)} vectors of {self.dim}; make the lanes again")
        return anchors


@dataclass(frozen=True, eq=False)
class Lanes:
    """A lane for every row of one bank.

    Attributes:
        lane: [N], numbers of ``anchors.names``, memory-mapped when opened.
        confidence: [N], from 0 to 1, memory-mapped when opened.
        anchors: assign lanes to other rows of the same encoder.
        manifest: the bank of the lanes, and how they were made.
    """

    lane: UInt8[np.ndarray, " N"]
    confidence: Float16[np.ndarray, " N"]
    anchors: Anchors
    manifest: Manifest

    @property
    def names(self) -> tuple[str, ...]:
        return self.anchors.names

    @staticmethod
    def open(folder: str | Path, bank: Bank) -> "Lanes":
        """The lanes in a folder, of this bank; their files are hashed, 3 bytes a row.

        Raises:
            DataError: no lanes there, another bank's, or damaged ones.
        """
        folder = Path(folder)
        m = Manifest.read(folder)
        m.check(folder, bank)
        anchors = m.anchors(folder)
        lane = mapped_array(folder / LANE, np.dtype(np.uint8), (m.rows,), "make the lanes again")
        confidence = mapped_array(folder / CONFIDENCE, np.dtype(np.float16), (m.rows,), "make the lanes again")
        return Lanes(lane, confidence, anchors, m)

    def save(self, folder: str | Path) -> None:
        """Write a temporary folder, then rename it to ``folder``.

        Raises:
            DataError: the folder exists.
        """
        folder = Path(folder)
        if folder.exists():
            raise DataError(f"{folder} already exists; choose another name or delete it first")
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files = {
            ANCHORS: save({"vectors": self.anchors.vectors, "prices": self.anchors.prices}),
            LANE: self.lane.tobytes(),
            CONFIDENCE: self.confidence.tobytes(),
        }
        try:
            for name, content in files.items():
                write_atomically(partial / name, content)
            sizes = {name: len(content) for name, content in files.items()}
            hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            whole = asdict(replace(self.manifest, sizes=sizes, sha256=hashes))
            write_atomically(partial / MANIFEST, json.dumps(whole, indent=1) + "\n")
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def of_documents(self, bank: Bank) -> tuple[UInt8[np.ndarray, " M"], Float32[np.ndarray, " M"]]:
        """For each document, the lane with the largest sum of confidence, and its share of the whole sum."""
        owner = bank.document_of(np.arange(len(bank), dtype=np.int64))
        votes = np.zeros((bank.num_documents, len(self.names)))
        np.add.at(votes, (owner, self.lane), self.confidence.astype(np.float64))
        # All of a document's confidences may have been rounded to zero.
        shares = votes / np.maximum(votes.sum(1, keepdims=True), np.finfo(np.float64).tiny)
        return shares.argmax(1).astype(np.uint8), shares.max(1).astype(np.float32)


def _softmax_at(logits: Float32[np.ndarray, "B L"], lane: UInt8[np.ndarray, " B"]) -> Float32[np.ndarray, " B"]:
    own = np.take_along_axis(logits, lane[:, None].astype(np.int64), 1)
    with np.errstate(over="ignore"):  # a lane that scores far higher than the row's own gives 1 / infinity = 0, which is right
        return 1 / np.exp(logits - own).sum(1)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
