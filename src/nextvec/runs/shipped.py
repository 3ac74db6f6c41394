"""The weights that travel inside the package: those of the model ``pooled``, which hold no content.

``docs/shipped.md`` states what they were trained on and what they reach on unseen documents.
"""

from importlib.resources import files

from safetensors.torch import load
from torch import Tensor

from nextvec.models import Pooled
from nextvec.models.space import InSpace, Space

SHIPPED = "shipped"  # in place of a run, as in --set start=shipped
FILE = "shipped.safetensors"
PREFIX = "model."  # of a model in a space
POWER = 0.5  # of the space that they were trained in


def shipped_weights() -> dict[str, Tensor]:
    """The weights of ``pooled`` with its default options, named as those of a model in a space, and ``log_temperature``."""
    tensors = load(files("nextvec.runs").joinpath(FILE).read_bytes())
    return {name if name == "log_temperature" else PREFIX + name: tensor for name, tensor in tensors.items()}


def shipped_model(space: Space) -> InSpace:
    """The model with the weights of the package in a space, in evaluation mode."""
    model = InSpace(space, Pooled(len(space.mean), 0.5))
    model.take_over({name: tensor for name, tensor in shipped_weights().items() if name.startswith(PREFIX)})
    return model.eval()
