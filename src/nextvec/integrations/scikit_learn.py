"""An estimator with the interface of scikit-learn; needs ``scikit-learn``."""

# Axes: N rows, D width, W width of an output, K candidates.

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from nextvec.bank import Bank
from nextvec.bank.arrays import numpy_documents
from nextvec.errors import NextvecError
from nextvec.inference import Engine
from nextvec.inference.engine import SEGMENT
from nextvec.models.space import InSpace
from nextvec.recipes import recipe as settings_of
from nextvec.runs import LoadedModel, load
from nextvec.training import begin, train
from nextvec.vectors import unit_rows


class NextVector(BaseEstimator):
    """Predicts the vector that follows each row of a sequence.

    The order of the rows is part of the data: the prediction for a row depends on the rows of its document before it. Rows are
    scaled to unit length. As in hmmlearn, ``X`` holds documents one after another, and ``lengths`` is the number of rows of
    each::

        model = NextVector().fit(X, lengths)
        following = model.predict(X, lengths)
        scores, rows = model.expected(X, lengths, k=5)

    Args:
        recipe: name of the recipe that is trained; None for the weights of the package, which need no training.
        settings: changes of the recipe by flat name, such as ``{"updates": 100}``.
        run: folder of the run, which training continues after an interruption; None for a temporary one.

    Attributes:
        model_: the fitted model and the bank of the rows of ``X``.
    """

    def __init__(
        self, recipe: str | None = None, settings: Mapping[str, Any] | None = None, run: str | Path | None = None
    ) -> None:
        self.recipe = recipe
        self.settings = settings
        self.run = run

    def fit(self, X: Any, lengths: Any = None) -> "NextVector":
        """Fit the space to the rows, or train the recipe on them.

        Args:
            X: [N, D] numbers.
            lengths: [M] rows of each document; one document when None.

        Raises:
            ValueError: rows that are zero or not finite, lengths that do not fit, settings without a recipe, or documents that
                the recipe cannot be trained on.
        """
        rows = _checked(self, X, reset=True)
        with _value_errors():
            bank = Bank.from_numpy(rows, _lengths(rows, lengths))
            self.model_ = self._trained(bank)
            self._engine = Engine.of(self.model_)
        return self

    def predict(self, X: Any, lengths: Any = None) -> Float32[np.ndarray, "N D"]:
        """For each row, the vector of unit length that is expected after it, given the rows of its document up to it.

        Of a model with several queries, their weighted mean. Candidates are ranked by all queries: see :meth:`expected`.

        Raises:
            ValueError: as :meth:`fit`, or another width.
        """
        model = self._fitted_engine().model
        found: list[np.ndarray] = []
        with torch.inference_mode():
            for document in self._documents(X, lengths):
                state = model.start(1)
                for segment_1TD in torch.from_numpy(document)[None].split(SEGMENT, dim=1):
                    state, y_1TW = model.run(state, segment_1TD)
                    mean_TE = model.queries(y_1TW[0]).mean()
                    found.append((model.space.inverse(mean_TE) if isinstance(model, InSpace) else mean_TE).numpy())
        return np.concatenate(found)

    def expected(self, X: Any, lengths: Any = None, k: int = 5) -> tuple[Float32[np.ndarray, "N K"], Int64[np.ndarray, "N K"]]:
        """For each row, the ``k`` distinct fitted rows that are expected after it: their scores and row numbers, best first.

        Vectors that the document holds up to the row are left out. Places without a row hold -inf and -1.

        Raises:
            ValueError: as :meth:`predict`, or k below 1.
        """
        engine = self._fitted_engine()
        scores: list[list[float]] = []
        rows: list[list[int]] = []
        for document in self._documents(X, lengths):
            session = engine.session()
            for vector in document:
                session.push(vector)
                with _value_errors():
                    found = session.predict(k)
                empty = k - len(found)
                scores.append([each.score for each in found] + [-np.inf] * empty)
                rows.append([each.row for each in found] + [-1] * empty)
        return np.array(scores, np.float32), np.array(rows, np.int64)

    def _fitted_engine(self) -> Engine:
        check_is_fitted(self, "model_")
        if "_engine" not in vars(self):  # of an unpickled estimator
            self._engine = Engine.of(self.model_)
        return self._engine

    def __getstate__(self) -> dict[str, Any]:
        """Without the engine, which holds locks and compiled layers, and is made again of the model."""
        state: Any = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_engine"}

    def _documents(self, X: Any, lengths: Any) -> list[Float32[np.ndarray, "T D"]]:
        rows = _checked(self, X, reset=False)
        with _value_errors():
            documents = numpy_documents(rows, _lengths(rows, lengths), None, "X")
            return [unit_rows(document.vectors, None, f"document {document.id}, ") for document in documents]

    def _trained(self, bank: Bank) -> LoadedModel:
        if self.recipe is None:
            if self.settings or self.run:
                raise ValueError("settings and run are of a training; name its recipe, for example recipe='default'")
            return load(bank)
        settings = settings_of(self.recipe, len(bank)).replaced(**(self.settings or {}))
        with TemporaryDirectory() as folder:
            run = begin(self.run or Path(folder) / "run", self.recipe, settings, bank)
            for _ in train(run, bank):
                pass
            return load(run, bank)


def _checked(estimator: BaseEstimator, X: Any, reset: bool) -> np.ndarray:
    """``X`` as an array [N, D] of finite floats, whose width the estimator compares with that of the fit, or sets."""
    rows: Any = validate_data(estimator, X, dtype=(np.float32, np.float64), reset=reset)
    return rows


def _lengths(rows: np.ndarray, lengths: Any) -> Any:
    return [len(rows)] if lengths is None else lengths


@contextmanager
def _value_errors() -> Generator[None]:
    """Errors of nextvec as the ValueError that scikit-learn expects of estimators."""
    try:
        yield
    except NextvecError as error:
        raise ValueError(str(error)) from error
