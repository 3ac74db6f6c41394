"""The optimiser: torch's numbers, without torch's compiler."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from nextvec.training.gradient import with_gradient
from nextvec.training.optimizer import BETAS, AdamW


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(4)), nn.Parameter(torch.tensor(0.5))]


def test_steps_are_those_of_the_class_of_torch_to_the_last_bit() -> None:
    ours, theirs = parameters(), parameters()
    mine = AdamW([{"params": ours[:1], "weight_decay": 0.3}, {"params": ours[1:], "weight_decay": 0.0}])
    reference = torch.optim.AdamW(
        [{"params": theirs[:1], "weight_decay": 0.3}, {"params": theirs[1:], "weight_decay": 0.0}], betas=BETAS
    )
    for update in range(7):
        for optimizer, held in ((mine, ours), (reference, theirs)):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (update + 1)
            optimizer.zero_grad()
            used = held if update % 2 else held[:2]  # a parameter without a gradient stays, and so do its moments
            sum((p.square() * (n + 1)).sum() for n, p in enumerate(used)).backward()  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            assert torch.equal(p, q)
    for p, q in zip(ours, theirs, strict=True):
        assert all(torch.equal(mine.state[p][key], reference.state[q][key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_a_gradient_goes_on_from_several_ends() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    given = [torch.randn(4, 3, dtype=torch.float64), torch.randn((), dtype=torch.float64)]

    def ends() -> list[Tensor]:
        return [x.sin(), x.square().sum()]

    with_gradient(ends(), given).backward()
    assert x.grad is not None
    expected = given[0] * x.detach().cos() + given[1] * 2 * x.detach()
    assert x.grad.numpy() == pytest.approx(expected.numpy(), rel=1e-14)


TRAINS = """
import sys, tempfile
from pathlib import Path
from tests.serving.server import make_run
make_run(Path(tempfile.mkdtemp()))
print(sorted({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)))
"""


def test_a_process_that_trains_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", TRAINS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
