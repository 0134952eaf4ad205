"""What every process of tests/test_distributed.py runs, started by torchrun or accelerate launch."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_nets import digits, nested_net, same_loss, seeded, state
from torch import nn

from dqt_core import train
from dqt_core.training import distributed
from dqt_core.training.objective import Objective

STEPS, EVERY, KILLED_AT = 9, 3, 7
RECIPE = train.Recipe(epochs=STEPS / 44, batch_size=32, microbatch=8, lr=0.05, precision="no")


@same_loss
class Mortal(Objective):
    """An objective whose second process kills itself in a step, the first time."""

    def __call__(self, net, images, labels, progress):
        marker = Path(sys.argv[1], "killed")
        if os.environ.get("RANK") == "1" and round(progress * STEPS) == KILLED_AT and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(net, images, labels, progress)


def trained(folder, objective=Objective):
    """The digits' network after all steps; the second process starts from weights that it must lose."""
    net = nested_net(seed=int(os.environ.get("RANK", 0)))
    history = train.fit(net, digits(), RECIPE, objective(beta=0.1), folder, checkpoint_every=EVERY)
    return net, history


def check_messages():
    """Sums, gradients that only one process has, and networks that differ."""
    rank = torch.distributed.get_rank()
    parts = [torch.tensor([1.0 + rank]), torch.tensor([[10.0], [20.0 * rank]])]
    distributed.sum_over_processes(parts)
    assert [part.tolist() for part in parts] == [[3.0], [[20.0], [20.0]]]
    here, there, nowhere = (nn.Parameter(torch.ones(2)) for _ in range(3))
    here.grad = torch.full((2,), 1.0 + rank)
    if rank == 1:
        there.grad = torch.full((2,), 7.0)
    distributed.sum_gradients([here, there, nowhere])
    assert (here.grad.tolist(), there.grad.tolist(), nowhere.grad) == ([3.0, 3.0], [7.0, 7.0], None)
    net = seeded(lambda: nn.Linear(2, 2))
    distributed.require_equal(net)
    net.weight.data[0, 0] += rank
    with pytest.raises(RuntimeError, match="the 2 processes hold 2 different networks"):
        distributed.require_equal(net)
    distributed.broadcast(net)
    distributed.require_equal(net)


def main(folder):
    net, history = trained(folder / "run", Mortal)
    assert distributed.processes() == 2
    check_messages()
    rank = torch.distributed.get_rank()
    weights = {name: value.contiguous() for name, value in state(net).items()}
    save_file(weights, folder / f"weights-{rank}.safetensors")
    (folder / f"steps-{rank}").write_text(str([entry["step"] for entry in history]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
