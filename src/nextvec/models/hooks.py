"""What training and reports ask of a model besides its predictions. A model overrides what applies to it."""

# Axes: B passages, T positions, D width, W width of an output, E experts.

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn


class AuxiliaryLoss(NamedTuple):
    """A term that training adds to the loss of the predictions: ``weight`` times ``value``, a mean over scored positions."""

    name: str
    weight: float
    value: Float[Tensor, ""]


class Routing(NamedTuple):
    """The experts of each position.

    ``probabilities`` of all experts sum to one. ``weights`` are 0 except for the active experts.
    """

    probabilities: Float[Tensor, "*shape E"]
    weights: Float[Tensor, "*shape E"]


class LastTrained(NamedTuple):
    """Parameters that alone are trained in the last ``fraction`` of the updates, and are not trained before."""

    fraction: float
    parameters: list[nn.Parameter]


class TrainingHooks(nn.Module):
    """The defaults: no auxiliary loss, no experts, all parameters trained in every update.

    Attributes:
        vector_parameters: prefixes of the names of matrices that are trained like vectors: faster, without weight decay.
        has_auxiliary: whether training calls :meth:`with_auxiliary` instead of ``forward``.
        num_experts: E experts that :meth:`routing` chooses from; 0 for a model without experts.
    """

    vector_parameters: tuple[str, ...] = ("trunk.",)
    has_auxiliary: bool = False
    num_experts: int = 0

    def difference(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """The predicted difference of the next vector to the last one, for ``loss_on=delta``.

        Raises:
            NotImplementedError: the model predicts no difference.
        """
        raise NotImplementedError(f"{type(self).__name__} predicts no difference")

    def with_auxiliary(
        self, x_BTD: Float[Tensor, "B T D"], scored_BT: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T W"], AuxiliaryLoss]:
        """As ``forward``, and the auxiliary loss over the scored positions.

        Raises:
            NotImplementedError: the model has no auxiliary loss.
        """
        raise NotImplementedError(f"{type(self).__name__} has no auxiliary loss")

    def last_trained(self) -> LastTrained:
        """The parameters that are trained after all others."""
        return LastTrained(0.0, [])

    def after_update(self, x_BTD: Float[Tensor, "B T D"]) -> None:
        """Called after every update with one passage that it read; may write buffers, not parameters."""

    def take_over(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights of another trained model.

        Raises:
            RuntimeError: they are of another model or of other sizes.
        """
        self.load_state_dict(tensors)

    def routing(self, x_BTD: Float[Tensor, "B T D"]) -> Routing:
        """The experts of each position of a passage.

        Raises:
            NotImplementedError: the model has no experts.
        """
        raise NotImplementedError(f"{type(self).__name__} has no experts")
