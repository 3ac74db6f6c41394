"""The engine: a model opened for inference. It advances sessions, one or several at a time."""

# Axes: B sessions, T vectors, N predictions, R rows, D width, W width of an output, A rows that a mask knows.

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.candidate_map import CandidateMap, index_of, search, update
from nextvec.confidence import FIRST, Calibration
from nextvec.encoders import Encoder, load_encoder
from nextvec.errors import DataError, NotFiniteError, SettingsError
from nextvec.evaluation.calibration import calibration_of
from nextvec.index import Index, Neighbours, allowed_rows
from nextvec.index.layout import other_map
from nextvec.inference import snapshot
from nextvec.inference.because import check_because, explained
from nextvec.inference.confidence import Confidence
from nextvec.inference.expected import Expected, context_chunks
from nextvec.inference.forms import Forms
from nextvec.inference.place import ComputePlace, StatusListener
from nextvec.inference.request import PredictionRequest
from nextvec.inference.session import Session
from nextvec.inference.states import Batches, owned
from nextvec.ingestion import Chunking
from nextvec.kernels.weights import WeightFormat
from nextvec.models import Recurrent
from nextvec.models.packed import fastest_format, pack
from nextvec.progress import Progress, silent
from nextvec.runs import LoadedModel, Source, load, open_source
from nextvec.vectors import unit_rows

SEGMENT = 1024  # vectors of a context that are read at once, which bounds memory
TOGETHER = 256  # sessions in one step: enough to use the processor, and it bounds the memory of joined states


class Engine:
    """A model, the bank whose rows are its candidates, and an index of them.

    Every vector is one step of the model; the cost does not depend on what was
    read before. With float32 weights the predictions equal those of the plain
    model to 1e-5. With another weight format they equal those of a model with
    the rounded weights.

    A model that maps candidates gets an index of the mapped rows. A prediction
    of a model with several queries holds all of them and their log weights, and
    a search ranks by the scores of the model.

    Args:
        model: in evaluation mode, as :func:`~nextvec.models.packed.pack` makes it.
        bank: the candidates, with their texts.
        index: of the bank's distinct vectors, mapped where the model maps candidates; an exact one is built when None. Mapped
            rows are then read as int8.
        digest: of the model; a snapshot is restored only by an engine with the same digest.
        weights: the format of the weights.
        context: number of vectors that the model was trained to read; None if unknown.
        calibration: of the model; without it, answers have no probabilities.

    Raises:
        DataError: a model of another width than the bank, or an index of another bank or another map of candidates.
        SettingsError: an index without filters.
    """

    def __init__(
        self,
        model: Recurrent[Any],
        bank: Bank,
        index: Index | None = None,
        digest: str | None = None,
        weights: WeightFormat = "float32",
        context: int | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        if bank.dim != model.dim:
            raise DataError(f"the model reads vectors of width {model.dim}, the bank holds width {bank.dim}")
        self.model = model
        self.bank = bank
        self.candidate_map = CandidateMap.of(model)
        self.index: Index = index if index is not None else index_of(bank, self.candidate_map)
        if len(self.index.distinct.numbers) != len(bank.table):
            numbers = len(self.index.distinct.numbers)
            raise DataError(f"the index is of a bank of {numbers:,} rows; this one has {len(bank.table):,}")
        wanted = "" if self.candidate_map is None else self.candidate_map.digest
        if self.index.map_digest != wanted:
            raise DataError(f"the index is {other_map(self.index.map_digest, wanted)}")
        if not self.index.filters:
            raise SettingsError(f"an engine leaves out what a session has read; the {self.index.kind} index has no filters")
        self.digest = digest or _digest(model, "")
        self.weights: WeightFormat = weights
        self.context = context
        self.confidence = None if calibration is None else Confidence(calibration, model, bank)
        self.batches = Batches(model)
        self.forms = Forms(model)

    @staticmethod
    def open(
        source: Source | str | Path,
        bank: Bank | None = None,
        index: Index | None = None,
        weights: WeightFormat | Literal["auto"] = "auto",
        refit: bool = False,
        progress: Progress = silent,
    ) -> "Engine":
        """An engine with the best weights of a run, or for a bank with those of the package, which need no training.

        Its answers have probabilities if there is a calibration (:func:`~nextvec.evaluation.calibration.calibration_of`).

        Args:
            source: a run or a bank, or the folder of one.
            bank, refit: of :func:`~nextvec.runs.load`: the candidates of a run, and whether its space is fitted to them.
            weights: the format of the weights; ``auto`` takes the fastest on this processor.

        Raises:
            NextvecError: as :func:`~nextvec.runs.open_source` and :func:`~nextvec.runs.load`; no such weight format.
        """
        opened = open_source(source) if isinstance(source, str | Path) else source
        loaded = load(opened, bank, refit, progress)
        return Engine.of(loaded, index, weights, progress, calibration_of(opened, loaded.bank, refit, progress))

    @staticmethod
    def of(
        loaded: LoadedModel,
        index: Index | None = None,
        weights: WeightFormat | Literal["auto"] = "auto",
        progress: Progress = silent,
        calibration: Calibration | None = None,
    ) -> "Engine":
        """An engine of a loaded model; arguments as in :meth:`open` and of the class."""
        chosen: WeightFormat = fastest_format() if weights == "auto" else weights
        model, bank, context = loaded.model, loaded.bank, loaded.settings.passages.context
        digest = _digest(model, f"{loaded.facts} {chosen}")
        held = index if index is not None else index_of(bank, CandidateMap.of(model), progress=progress)
        return Engine(pack(model, chosen), bank, held, digest, chosen, context, calibration)

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def names_rows(self) -> bool:
        """Whether its answers can name the rows of the context that they come from."""
        return self.model.names_rows

    @property
    def encoder_fingerprint(self) -> str:
        return self.bank.manifest.encoder_fingerprint

    def session(self, encoder: str | None = None) -> Session:
        """A new session.

        Args:
            encoder: fingerprint of the encoder of its vectors, which is compared with the bank's.

        Raises:
            DataError: vectors of another encoder than the bank's.
        """
        if encoder is not None and encoder != self.encoder_fingerprint:
            raise DataError(f"vectors of encoder {encoder}, but the bank was made with {self.encoder_fingerprint}")
        return Session(self, self.model.start(1))

    def restore(self, data: bytes) -> Session:
        """The session of a snapshot, which :meth:`Session.snapshot` or a server wrote, perhaps in another process.

        Raises:
            DataError: not a snapshot, damaged, or of another model or bank.
        """
        return Session.restored(self, snapshot.restore(data, self.digest, self.bank, self.forms))

    @torch.inference_mode()
    def step(self, sessions: Sequence[Session], vectors: np.ndarray) -> Float32[np.ndarray, "B W"]:
        """Each session reads one vector; returns the predictions (:attr:`Session.prediction`).

        Sessions whose states have equal shapes are one batch, and all sessions
        of a model that steps states apart. Their predictions equal those of
        single steps up to rounding, because a product of several rows sums in
        another order.

        Raises:
            DataError: a vector that is not usable, or a session given twice; then no session changes.
            NotFiniteError: a prediction is not finite; then no session changes.
        """
        rows = unit_rows(vectors, self.dim)
        if len(rows) != len(sessions) or len(set(map(id, sessions))) != len(sessions):
            raise DataError(f"{len(sessions)} sessions and {len(rows)} vectors; want one vector each, and each session once")
        predicted = np.empty((len(rows), self.model.output_width), np.float32)
        after: dict[int, Any] = {}
        for members in self._groups(sessions):
            states, y_BW = self._stepped([sessions[n].state for n in members], torch.from_numpy(rows[members]))
            predicted[members] = y_BW.numpy()
            after.update(zip(members, states, strict=True))
        _check_finite(predicted)
        for n, session in enumerate(sessions):
            session.advance(after[n], predicted[n].copy(), rows[n : n + 1])
        return predicted

    @torch.inference_mode()
    def read(self, session: Session, vectors: np.ndarray) -> Float32[np.ndarray, " W"]:
        """One session reads vectors [T, D] in order; returns the prediction after the last (:attr:`Session.prediction`).

        Raises:
            DataError: a vector that is not usable; then the session does not change.
            NotFiniteError: the prediction is not finite; then the session does not change.
        """
        rows = unit_rows(vectors, self.dim)
        state, predicted = session.state, rows[0]
        for first in range(0, len(rows), SEGMENT):
            state, y_BTW = self.model.run(state, torch.from_numpy(rows[None, first : first + SEGMENT]))
            predicted = y_BTW[0, -1].numpy().copy()
        _check_finite(predicted)
        session.advance(owned(state), predicted, rows)
        return predicted

    @torch.inference_mode()
    def predict(
        self, sessions: Sequence[Session], k: int = 5, documents: Sequence[int] | None = None, because: int = 0
    ) -> list[list[Expected]]:
        """The ``k`` distinct vectors that each session expects next, found in one search.

        Args:
            because: rows of the context to name for each of them.

        Raises:
            DataError: a session that has read nothing, or a document that does not exist.
            SettingsError: k below 1, ``because`` below 0, or a model that does not name rows.
        """
        check_because(because, self.names_rows)
        predictions = [session.prediction for session in sessions]
        if any(prediction is None for prediction in predictions):
            raise DataError("a session that has read nothing has no prediction; push a vector first")
        if not sessions:
            return []
        allowed = None if documents is None else allowed_rows(self.bank, documents)
        excluded, read = [session.rows_seen() for session in sessions], np.array([session.length for session in sessions])
        outputs = np.stack([prediction for prediction in predictions if prediction is not None])
        found, probabilities = self.search(outputs, k, read, excluded, allowed)
        answers = [
            [Expected.of(self.bank, row, score, probability) for row, score, probability in zip(*line, strict=True) if row >= 0]
            for line in zip(found.rows.tolist(), found.scores.tolist(), probabilities, strict=True)
        ]
        return [explained(self.model, self.index, *of, because) for of in zip(sessions, answers, strict=True)]

    @torch.inference_mode()
    def search(
        self,
        predictions: Float32[np.ndarray, "N W"],
        k: int,
        read: Int64[np.ndarray, " N"],
        excluded: Sequence[Int64[np.ndarray, "..."]],
        allowed: Bool[np.ndarray, " A"] | None = None,
    ) -> tuple[Neighbours, list[list[float | None]]]:
        """:func:`nextvec.candidate_map.search`, and the probability of each vector found; None without a calibration.

        Args:
            read: number of vectors of each context.
        """
        if self.confidence is None:
            return search(self.model, self.index, predictions, k, excluded, allowed), [[None] * k for _ in predictions]
        found = search(self.model, self.index, predictions, max(k, FIRST), excluded, allowed)
        added = len(self.index) - len(self.bank.table)
        probabilities = self.confidence.probabilities(predictions, found.scores, k, read, excluded, allowed, added)
        return Neighbours(found.rows[:, :k], found.scores[:, :k], found.decided), probabilities.tolist()

    def answers(self, requests: Sequence[PredictionRequest]) -> list[list[Expected] | Exception]:
        """One batched step and one batched search for requests of distinct sessions.

        If the batch fails, the requests are answered one by one, so that an error concerns one session alone.
        """
        try:
            return list(self._answers(requests))
        except Exception as error:
            if len(requests) == 1:
                return [error]
            return [self.answers([request])[0] for request in requests]

    def nearest(self, vectors: np.ndarray) -> Int64[np.ndarray, " R"]:
        """For each vector [R, D] the first row of the bank that holds it, or the first row of the nearest vector.

        Vectors are compared as the model compares candidates: after its map.

        Raises:
            DataError: a vector that is not usable.
        """
        unit = unit_rows(vectors, self.dim)
        found = self.bank.distinct.find(unit)
        other = np.flatnonzero(found < 0)
        asked = unit[other] if self.candidate_map is None else self.candidate_map(unit[other])
        found[other] = self.index.search(asked, 1).rows[:, 0]
        return found

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder that made the bank.

        Raises:
            DataError: a bank without text, or another version of the encoder is installed.
        """
        manifest = self.bank.manifest
        if not manifest.text:
            raise DataError("this bank holds vectors only; give the session vectors, not text")
        encoder = load_encoder(manifest.encoder)
        if encoder.fingerprint != manifest.encoder_fingerprint:
            raise DataError(f"the bank was made with {manifest.encoder_fingerprint}; installed is {encoder.fingerprint}")
        return encoder

    def encode(self, text: str) -> Float32[np.ndarray, "T D"]:
        """The vectors of a text's chunks, cut as the bank's texts were.

        Raises:
            DataError: an empty text, no encoder (:attr:`encoder`), or a bank whose chunks are longer than its encoder reads.
        """
        return self.encode_chunks(self.cut(text))

    def cut(self, text: str) -> list[str]:
        """The chunks of a text, at least one, cut as the bank's texts were.

        Raises:
            DataError: an empty text, no encoder (:attr:`encoder`), or a bank whose chunks are longer than its encoder reads.
        """
        encoder = self.encoder
        try:
            return context_chunks(text, encoder, Chunking.read(self.bank.manifest.chunking))
        except SettingsError as error:
            raise DataError(f"the bank was cut into {error}; ingest its text again") from None

    def encode_chunks(self, chunks: Sequence[str]) -> Float32[np.ndarray, "T D"]:
        """The vectors of chunks from :meth:`cut`.

        Raises:
            DataError: no encoder (:attr:`encoder`).
        """
        return self.encoder.encode(chunks, "passage").rows

    # An engine in the server's own process starts and ends with it: the life cycle of an isolated engine is empty here.

    @property
    def place(self) -> ComputePlace:
        """This process."""
        return ComputePlace(isolated=False, pid=os.getpid())

    @property
    def fault(self) -> str | None:
        """None: an engine in this process can always be asked."""
        return None

    def subscribe(self, listener: StatusListener) -> None:
        """Does nothing: the status of an engine in this process never changes."""

    def retire(self) -> None:
        """Does nothing: states in this process stay usable when another engine answers."""

    def close(self) -> None:
        """Does nothing: there is no process to end."""

    def _answers(self, requests: Sequence[PredictionRequest]) -> list[list[Expected]]:
        stepping = [request for request in requests if len(request.rows) == 1]
        if stepping:
            self.step([request.state for request in stepping], np.concatenate([request.rows for request in stepping]))
        for request in stepping:
            request.rows = request.rows[:0]
        for request in requests:
            if len(request.rows):
                request.state.push_many(request.rows)
                request.rows = request.rows[:0]
        searching = [request for request in requests if request.k]
        found = self.predict([q.state for q in searching], max(q.k for q in searching)) if searching else []
        of = {id(request): expected for request, expected in zip(searching, found, strict=True)}
        answers = [
            explained(self.model, self.index, request.state, of.get(id(request), [])[: request.k], request.because)
            for request in requests
        ]
        if not all(math.isfinite(expected.score) for answer in answers for expected in answer):
            raise NotFiniteError("the engine found a score that is not finite")
        return answers

    def _stepped(self, states: list[Any], x_BD: Float32[Tensor, "B D"]) -> tuple[list[Any], Float32[Tensor, "B W"]]:
        if self.model.steps_each:
            return self.model.step_each(states, x_BD)
        state = self.batches.join(states) if len(states) > 1 else states[0]
        state, y_BW = self.model.step(state, x_BD)
        return self.batches.split(state, len(states)), y_BW

    def _groups(self, sessions: Sequence[Session]) -> list[list[int]]:
        alike: defaultdict[Hashable, list[int]] = defaultdict(list)
        for n, session in enumerate(sessions):
            alike[None if self.model.steps_each else self.batches.kind(session.state)].append(n)
        return [group[first : first + TOGETHER] for group in alike.values() for first in range(0, len(group), TOGETHER)]


def _check_finite(predicted: np.ndarray) -> None:
    if not np.isfinite(predicted).all():
        raise NotFiniteError("the model's prediction is not finite (NaN or infinity); the model is broken")


def _digest(model: Recurrent[Any], facts: str) -> str:
    """The sha256 of the facts and of all tensors, those of a space included."""
    digest = hashlib.sha256(f"{type(model).__name__} {facts}".encode())
    update(digest, model.state_dict())
    return digest.hexdigest()
