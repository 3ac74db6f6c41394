"""The candidates of a model: their map as an index takes it, their index, their mean, and the search by the model's scores."""

# Axes: N rows, D width, E width of mapped rows, P predictions, W width of an output, A rows that a mask knows.

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.index import ExactIndex, Index, Neighbours, search_pooled
from nextvec.kernels.scan_rows import RowFormat
from nextvec.models import Recurrent
from nextvec.progress import Progress, silent

AVERAGED = 4_096  # distinct vectors that the mean candidate is taken over, at most


class CandidateMap:
    """``model.candidates`` on arrays: a :class:`~nextvec.index.RowMap`.

    Attributes:
        digest: sha256 of the tensors that the map reads. Packing for inference changes none of them, so a trained model and
            its packed forms have one digest.
    """

    def __init__(self, model: Recurrent[Any]) -> None:
        self._model = model
        digest = hashlib.sha256()
        update(digest, model.map_tensors())
        self.digest = digest.hexdigest()

    @staticmethod
    def of(model: Recurrent[Any]) -> "CandidateMap | None":
        """The map of a model; None where its candidates are the rows themselves."""
        return CandidateMap(model) if model.maps_candidates else None

    @torch.inference_mode()
    def __call__(self, rows: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N E"]:
        return self._model.candidates(torch.from_numpy(np.ascontiguousarray(rows))).numpy()


def index_of(
    bank: Bank, candidate_map: CandidateMap | None, form: RowFormat | None = None, progress: Progress = silent
) -> ExactIndex:
    """The exact index of a bank for a model.

    Args:
        candidate_map: of the model; None where its candidates are the rows themselves.
        form: format in which rows are read. None takes that of the bank; of mapped rows, which are a copy in any case, it takes
            int8, which is read fastest.
    """
    chosen: RowFormat | None = "int8" if form is None and candidate_map is not None else form
    return ExactIndex.build(bank, chosen, progress=progress, mapping=candidate_map)


def search(
    model: Recurrent[Any],
    index: Index,
    predictions: Float32[np.ndarray, "P W"],
    k: int,
    excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
    allowed: Bool[np.ndarray, " A"] | None = None,
) -> Neighbours:
    """The ``k`` distinct vectors with the best scores for each prediction; the scores are those of the model.

    Args:
        index: of the candidates as the model maps them.
        predictions: outputs of the model.
        excluded: for each prediction, rows whose vectors are left out.
        allowed: mask of the rows that may be answers (:func:`~nextvec.index.allowed_rows`).

    Raises:
        DataError: a prediction is not finite.
        SettingsError: k below 1.
    """
    if model.num_queries == 1:  # the prediction is the query
        return index.search(predictions, k, excluded, allowed)
    return search_pooled(index, model.queries(torch.from_numpy(predictions)), k, excluded, allowed)


@torch.inference_mode()
def mean_candidate(bank: Bank, model: Recurrent[Any]) -> Float[Tensor, "1 E"]:
    """The mean of the candidates of a bank as the model maps them; of evenly spaced ones where there are many."""
    firsts = bank.distinct.firsts[:: -(-len(bank.distinct) // AVERAGED)]
    return model.candidates(torch.from_numpy(bank.rows[firsts].astype(np.float32))).mean(0, keepdim=True)


def update(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add the names, types, shapes and bytes of tensors to a digest of :mod:`hashlib`, in the order of their names."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
