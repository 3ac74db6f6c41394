"""The engine: a trained run opened for answering, and the sessions that it moves forward, alone or many at once."""

# Axes: B sessions, T vectors, R rows, D width.

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64

from nextvec import settings as frozen
from nextvec.bank import Bank
from nextvec.bank.layout import MANIFEST
from nextvec.bank.verification import Verify
from nextvec.encoders import Encoder, load_encoder
from nextvec.errors import DataError, NotFiniteError, RunError, SettingsError
from nextvec.index import ExactIndex, Index, allowed_rows
from nextvec.inference import snapshot
from nextvec.inference.expected import Expected, context_chunks
from nextvec.inference.forms import Forms
from nextvec.inference.session import Session
from nextvec.inference.states import Batches, owned
from nextvec.ingestion import Chunking
from nextvec.kernels.weights import WeightFormat
from nextvec.models import Recurrent
from nextvec.models.packed import fastest_format, pack
from nextvec.progress import Progress, silent
from nextvec.runs import Run, load_model
from nextvec.runs.loading import check_encoder
from nextvec.vectors import unit_rows

SEGMENT = 1024  # vectors read at once: the memory of a long context stays bounded
TOGETHER = 256  # sessions in one step: enough for the processor, and the states of no more lie twice in memory


@dataclass(eq=False)
class Question:
    """What a session reads, and how much it is asked then.

    Attributes:
        state: the session; unknown after an error.
        rows: vectors [T, D] that it has not read; emptied once it has, so that nothing is read twice.
        k: candidates wanted; 0 for none.
    """

    state: Any
    rows: Float32[np.ndarray, "T D"]
    k: int


class Engine:
    """A model, the bank whose rows are its candidates, and an index of them.

    A vector is one step of the model, whatever was read before. Answers are
    the plain model's to 1e-5 (float32 weights); what other weights change is
    the change of the weights alone.

    Args:
        model: in evaluation mode, as :func:`~nextvec.models.packed.pack` makes it.
        bank: the candidates, with their texts.
        index: of the bank's distinct vectors; exact over all of them when None.
        digest: of the model; sessions are restored only where it is the same.
        weights: the format they are held in, for whoever asks.
        context: vectors that the model was trained to read, for whoever asks; None where nobody knows.
    """

    def __init__(
        self,
        model: Recurrent[Any],
        bank: Bank,
        index: Index | None = None,
        digest: str | None = None,
        weights: WeightFormat = "float32",
        context: int | None = None,
    ) -> None:
        if bank.dim != model.dim:
            raise DataError(f"the model reads vectors of width {model.dim}, the bank holds width {bank.dim}")
        self.model = model
        self.bank = bank
        self.index: Index = index if index is not None else ExactIndex.build(bank)
        if len(self.index.distinct.numbers) != len(bank):
            raise DataError(f"the index holds {len(self.index.distinct.numbers):,} rows of a bank, this bank {len(bank):,}")
        self.digest = digest or _digest(model, "")
        self.weights: WeightFormat = weights
        self.context = context
        self.batches = Batches(model)
        self.forms = Forms(model)

    @staticmethod
    def open(
        run: Run | str | Path,
        bank: Bank | None = None,
        index: Index | None = None,
        weights: WeightFormat | Literal["auto"] = "auto",
    ) -> "Engine":
        """A trained run's best weights, ready to answer.

        Args:
            bank: where candidates come from; the one it was trained on when None.
            weights: the format they are held in; ``auto`` takes what suits this processor.

        Raises:
            RunError: an untrained or damaged run, or one whose bank is no longer there, or another now.
            DataError: a bank of another encoder.
            SettingsError: no such weight format.
        """
        opened = run if isinstance(run, Run) else Run.open(Path(run))
        held = bank if bank is not None else bank_of(opened)
        check_encoder(opened, held)
        chosen: WeightFormat = fastest_format() if weights == "auto" else weights
        model, _ = load_model(opened)
        facts = json.dumps(frozen.to_json(opened.settings), sort_keys=True)
        return Engine(pack(model, chosen), held, index, _digest(model, f"{facts} {chosen}"), chosen, opened.settings.context)

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def encoder_fingerprint(self) -> str:
        return self.bank.manifest.encoder_fingerprint

    def session(self, encoder: str | None = None) -> Session:
        """A session that has read nothing.

        Args:
            encoder: fingerprint of what makes its vectors, to have a foreign one refused.

        Raises:
            DataError: vectors of another encoder than the bank's.
        """
        if encoder is not None and encoder != self.encoder_fingerprint:
            raise DataError(f"vectors of encoder {encoder}, but the bank was made with {self.encoder_fingerprint}")
        return Session(self, self.model.start(1))

    def restore(self, data: bytes) -> Session:
        """The session that :meth:`Session.snapshot` or a server wrote, perhaps in another process.

        Raises:
            DataError: bytes that are no whole snapshot of this engine's model and bank.
        """
        return snapshot.restore(self, data)

    @torch.inference_mode()
    def step(self, sessions: Sequence[Session], vectors: np.ndarray) -> Float32[np.ndarray, "B D"]:
        """Each session reads one vector; what each expects next.

        Sessions whose states have one form are one batch. Their answers are
        those of single steps to rounding, since a product of many rows sums in
        another order.

        Raises:
            DataError: a vector that cannot be read, or a session given twice; then no session is moved.
            NotFiniteError: the model's prediction is not; then no session is moved.
        """
        rows = unit_rows(vectors, self.dim)
        if len(rows) != len(sessions) or len(set(map(id, sessions))) != len(sessions):
            raise DataError(f"{len(sessions)} sessions and {len(rows)} vectors; want one vector each, and each session once")
        predicted = np.empty_like(rows)
        after: dict[int, Any] = {}
        for members in self._groups(sessions):
            state = self.batches.join([sessions[n].state for n in members]) if len(members) > 1 else sessions[members[0]].state
            state, y_BD = self.model.step(state, torch.from_numpy(rows[members]))
            predicted[members] = y_BD.numpy()
            after.update(zip(members, self.batches.split(state, len(members)), strict=True))
        _check_finite(predicted)
        for n, session in enumerate(sessions):
            session.moved(after[n], predicted[n].copy(), rows[n : n + 1])
        return predicted

    @torch.inference_mode()
    def read(self, session: Session, vectors: np.ndarray) -> Float32[np.ndarray, " D"]:
        """One session reads vectors [T, D] in order; what it expects after the last.

        Raises:
            DataError: a vector that cannot be read; then none is.
            NotFiniteError: the prediction is not; then none is read.
        """
        rows = unit_rows(vectors, self.dim)
        state, predicted = session.state, rows[0]
        for first in range(0, len(rows), SEGMENT):
            state, y_BTD = self.model.run(state, torch.from_numpy(rows[None, first : first + SEGMENT]))
            predicted = y_BTD[0, -1].numpy().copy()
        _check_finite(predicted)
        session.moved(owned(state), predicted, rows)
        return predicted

    @torch.inference_mode()
    def predict(self, sessions: Sequence[Session], k: int = 5, documents: Sequence[int] | None = None) -> list[list[Expected]]:
        """For each session the ``k`` distinct vectors that it expects next, in one search.

        Raises:
            DataError: a session that has read nothing, or a document that does not exist.
            SettingsError: k below 1.
        """
        predictions = [session.prediction for session in sessions]
        if any(prediction is None for prediction in predictions):
            raise DataError("a session that has read nothing expects nothing; push a vector first")
        if not sessions:
            return []
        allowed = None if documents is None else allowed_rows(self.bank, documents)
        queries = np.stack([p for p in predictions if p is not None])
        excluded = [session.rows_seen() for session in sessions]
        found = self.index.search(queries, k, excluded=excluded, allowed=allowed)
        return [
            [Expected.of(self.bank, row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
            for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        ]

    def answers(self, questions: Sequence[Question]) -> list[list[Expected] | Exception]:
        """One batched step and one batched search for all of them, each of another session.

        A batch that fails is asked one by one, so that one session fails alone.
        """
        try:
            return list(self._answers(questions))
        except Exception as error:
            if len(questions) == 1:
                return [error]
            return [self.answers([question])[0] for question in questions]

    def nearest(self, vectors: np.ndarray) -> Int64[np.ndarray, " R"]:
        """For each vector [R, D] the first row of the bank that holds it, or else that of the nearest.

        Raises:
            DataError: a vector that cannot be read.
        """
        unit = unit_rows(vectors, self.dim)
        found = self.bank.distinct.find(unit)
        other = np.flatnonzero(found < 0)
        found[other] = self.index.search(unit[other], 1).rows[:, 0]
        return found

    @cached_property
    def encoder(self) -> Encoder:
        """What made the bank.

        Raises:
            DataError: a bank of ready vectors, or an encoder that is not installed as it was.
        """
        manifest = self.bank.manifest
        if not manifest.text:
            raise DataError("this bank holds vectors only; give the session vectors, not text")
        encoder = load_encoder(manifest.encoder)
        if encoder.fingerprint != manifest.encoder_fingerprint:
            raise DataError(f"the bank was made with {manifest.encoder_fingerprint}; installed is {encoder.fingerprint}")
        return encoder

    def encode(self, text: str) -> Float32[np.ndarray, "T D"]:
        """A text as the vectors of its chunks, cut as the bank's texts were.

        Raises:
            DataError: an empty text, no encoder (:attr:`encoder`), or a bank of chunks that its encoder truncated.
        """
        return self.encode_chunks(self.cut(text))

    def cut(self, text: str) -> list[str]:
        """The chunks of a text, at least one, cut as the bank's texts were.

        Raises:
            DataError: an empty text, no encoder (:attr:`encoder`), or a bank of chunks that its encoder truncated.
        """
        encoder = self.encoder
        try:
            return context_chunks(text, encoder, Chunking.read(self.bank.manifest.chunking))
        except SettingsError as error:
            raise DataError(f"the bank was cut into {error}; ingest its text again") from None

    def encode_chunks(self, chunks: Sequence[str]) -> Float32[np.ndarray, "T D"]:
        """The vectors of chunks that :meth:`cut` gave, some or all of them.

        Raises:
            DataError: no encoder (:attr:`encoder`).
        """
        return self.encoder.encode(chunks, "passage").rows

    def _answers(self, questions: Sequence[Question]) -> list[list[Expected]]:
        stepping = [question for question in questions if len(question.rows) == 1]
        if stepping:
            self.step([question.state for question in stepping], np.concatenate([question.rows for question in stepping]))
        for question in stepping:
            question.rows = question.rows[:0]
        for question in questions:
            if len(question.rows):
                question.state.push_many(question.rows)
                question.rows = question.rows[:0]
        asking = [question for question in questions if question.k]
        found = self.predict([q.state for q in asking], max(q.k for q in asking)) if asking else []
        of = {id(question): expected for question, expected in zip(asking, found, strict=True)}
        answers = [of.get(id(question), [])[: question.k] for question in questions]
        if not all(math.isfinite(expected.score) for answer in answers for expected in answer):
            raise NotFiniteError("an engine answered with a score that is not finite")
        return answers

    def _groups(self, sessions: Sequence[Session]) -> list[list[int]]:
        alike: defaultdict[Hashable, list[int]] = defaultdict(list)
        for n, session in enumerate(sessions):
            alike[self.batches.kind(session.state)].append(n)
        return [group[first : first + TOGETHER] for group in alike.values() for first in range(0, len(group), TOGETHER)]


def bank_of(run: Run, given: Path | None = None, verify: Verify = "once", progress: Progress = silent) -> Bank:
    """The bank that a run was trained on, or the one given, which may be another.

    Args:
        verify: as :meth:`~nextvec.bank.Bank.open`'s.

    Raises:
        RunError: none was given, and where the run was trained on it there is none now, or another.
        DataError: its content is not what was written.
    """
    path = given or Path(run.origin.bank_path)
    if given is None and not (run.origin.bank_path and (path / MANIFEST).exists()):
        raise RunError(f"the bank of {run.path} is no longer at {path}; name it with --bank")
    bank = Bank.open(path, verify, progress)
    if given is None and bank.fingerprint != run.origin.bank:
        raise RunError(
            f"{run.path} was trained on bank {run.origin.bank[:12]}, but {path} now holds bank {bank.fingerprint[:12]}; "
            f"put its bank back, or use another on purpose: --bank PATH"
        )
    return bank


def _check_finite(predicted: np.ndarray) -> None:
    if not np.isfinite(predicted).all():
        raise NotFiniteError("the model's prediction is not finite (NaN or infinity); the model is broken")


def _digest(model: Recurrent[Any], facts: str) -> str:
    """sha256 over what the model is: facts, then names and bytes of all tensors."""
    digest = hashlib.sha256(f"{type(model).__name__} {facts}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
