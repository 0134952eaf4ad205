"""One step over several processes: sums of gradients, means of running statistics, equal weights.

A global batch is cut into microbatches, and a step is defined by them: the mean of their gradients, and the
mean of the running statistics that each leaves behind. Which process computes which microbatch changes
nothing but the order of a float sum, so a run may go on with another number of processes. (Not torch's
DistributedDataParallel: it wants one forward for each backward, and hides the network's own methods.)
"""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, distributed, nn


def processes() -> int:
    """How many processes train together; 1 outside of `torchrun` and `accelerate launch`.

    Examples
    --------
    >>> processes()
    1
    """
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its sum over the processes, in one message; every process gets the same bits.

    Parameters
    ----------
    tensors : sequence of float tensors
        Of one dtype and device, and of the same shapes in every process; changed in place.
    """
    if processes() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over the processes.

    A parameter that no process used keeps no gradient, so that no optimizer moves it; one that some used
    counts as zero elsewhere.

    Parameters
    ----------
    parameters : iterable of Parameter
        The same in every process.
    """
    if processes() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    used = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
    distributed.all_reduce(used)
    shared = [parameter for parameter, count in zip(trained, used.tolist(), strict=True) if count]
    for parameter in shared:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sum_over_processes([p.grad for p in shared if p.grad is not None])


def broadcast(net: nn.Module) -> None:
    """Give every process the parameters and buffers of the first."""
    if processes() > 1:
        for tensor in [*net.parameters(), *net.buffers()]:
            whole = tensor.data.contiguous()  # channels_last is no order that a message has
            distributed.broadcast(whole, 0)
            tensor.data.copy_(whole)


def digest(net: nn.Module) -> str:
    """sha256 of the parameters and buffers, in their order.

    Parameters
    ----------
    net : Module

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> net = nn.Linear(2, 1)
    >>> before = digest(net)
    >>> net.bias.data += 1
    >>> digest(net) == before
    False
    """
    sha = hashlib.sha256()
    for tensor in [*net.parameters(), *net.buffers()]:
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def require_equal(net: nn.Module) -> None:
    """Compare all processes' weights by digest.

    Raises
    ------
    RuntimeError
        If they are not the same bits.
    """
    if processes() == 1:
        return
    found: list[str | None] = [None] * processes()
    distributed.all_gather_object(found, digest(net))
    if len(set(found)) > 1:
        raise RuntimeError(
            f"the {len(found)} processes hold {len(set(found))} different networks; nothing was saved: "
            "start again from the last checkpoint, and report how it came about"
        )


class RunningStatistics:
    """Batch norm's running statistics over the microbatches of a step.

    Every microbatch starts from the statistics of the step's start; at the end they become the mean of what
    the microbatches left. Statistics of a batch are those of one microbatch, never of the whole.

    Parameters
    ----------
    net : Module
    microbatches : int
        In the global batch, over all processes.

    Examples
    --------
    >>> norm = nn.BatchNorm2d(1, momentum=1.0)
    >>> statistics = RunningStatistics(norm, microbatches=2)
    >>> statistics.begin()
    >>> for value in (1.0, 3.0):
    ...     _ = norm(torch.full((2, 1, 1, 1), value))
    ...     statistics.microbatch_done()
    >>> statistics.finish()
    >>> norm.running_mean
    tensor([2.])
    """

    def __init__(self, net: nn.Module, microbatches: int) -> None:
        buffers = list(net.buffers()) if microbatches > 1 else []
        self.count = microbatches
        self.means = [buffer for buffer in buffers if buffer.is_floating_point()]
        self.counters = [buffer for buffer in buffers if not buffer.is_floating_point()]
        self._start: list[Tensor] = []
        self._totals: list[Tensor] = []
        self._counted: list[Tensor] = []

    def begin(self) -> None:
        """Before the first microbatch of a step."""
        self._start = [buffer.clone() for buffer in self.means + self.counters]
        self._totals = [torch.zeros_like(buffer) for buffer in self.means]

    def microbatch_done(self) -> None:
        """After each microbatch: keep what it left, and go back."""
        for total, buffer in zip(self._totals, self.means, strict=True):
            total += buffer
        self._counted = [buffer.clone() for buffer in self.counters]
        for buffer, start in zip(self.means + self.counters, self._start, strict=True):
            buffer.copy_(start)

    def finish(self) -> None:
        """After the last one: the mean over all processes' microbatches."""
        sum_over_processes(self._totals)
        for buffer, total in zip(self.means, self._totals, strict=True):
            buffer.copy_(total / self.count)
        for buffer, counted in zip(self.counters, self._counted, strict=True):
            buffer.copy_(counted)


def mean_figures(
    parts: Sequence[dict[str, float]], microbatches: int, device: torch.device
) -> dict[str, float]:
    """The mean of logged figures over all microbatches of a step.

    Parameters
    ----------
    parts : sequence of dict
        One for each microbatch of this process, with the same keys.
    microbatches : int
        In the global batch.
    device : torch.device
        Where messages between processes lie.

    Returns
    -------
    dict
        Rounded to 4 digits where there is more than one microbatch.

    Examples
    --------
    >>> mean_figures([{"loss": 1.0}, {"loss": 2.0}], 2, torch.device("cpu"))
    {'loss': 1.5}
    """
    if microbatches == 1:
        return parts[0]
    sums = [torch.tensor(sum(part[key] for part in parts), device=device) for key in parts[0]]
    sum_over_processes(sums)
    return {key: round(total.item() / microbatches, 4) for key, total in zip(parts[0], sums, strict=True)}
