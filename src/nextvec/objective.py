"""What training minimises: InfoNCE over explicitly named negatives."""

# Axes: N predictions, C candidates, D width.

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

FORBIDDEN = -1e9


def info_nce(
    predicted_ND: Float[Tensor, "N D"],
    candidates_CD: Float[Tensor, "C D"],
    truth_N: Int64[Tensor, " N"],
    forbidden_NC: Bool[Tensor, "N C"],
    temperature: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Cross-entropy of the truth among the candidates (van den Oord et al. 2018), mean over predictions.

    Args:
        truth_N: column of each prediction's truth.
        forbidden_NC: candidates that are no negatives of a prediction: rows it
            has already read (as negatives they would push it away from its own
            context, which the exam excludes anyway) and copies of its truth.
        temperature: divides the cosines.
    """
    logits_NC = (predicted_ND @ candidates_CD.T) / temperature
    return cross_entropy(logits_NC.masked_fill(forbidden_NC, FORBIDDEN), truth_N)


def negative_counts(forbidden_NC: Bool[Tensor, "N C"]) -> Int64[Tensor, " N"]:
    """How many negatives each prediction really has; the truth itself is neither forbidden nor a negative."""
    return forbidden_NC.shape[1] - forbidden_NC.sum(1, dtype=torch.int64) - 1
