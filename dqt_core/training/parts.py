"""What stands between the layers of a converted network: pools, additions, and what computes no sum."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqt_core.training.layers import Coded, norm_of_maps, real


class CodedMaxPool(nn.Module):
    """Max-pool on codes.

    Examples
    --------
    >>> codes = Coded(torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor(0.5), signed=False)
    >>> CodedMaxPool(2, 2, 0)(codes).codes.flatten()
    tensor([ 5.,  7., 13., 15.])
    """

    def __init__(self, kernel: int, stride: int, padding: int, ceil: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.ceil = kernel, stride, padding, ceil

    def forward(self, x: Coded) -> Coded:
        codes = functional.max_pool2d(x.codes, self.kernel, self.stride, self.padding, ceil_mode=self.ceil)
        return Coded(codes, x.step, x.signed)


class MeanPool(nn.Module):
    """Mean over height and width, as real numbers (N, C), or (N, C, 1, 1) if it keeps both axes.

    Examples
    --------
    >>> codes = Coded(torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor(0.5), signed=False)
    >>> MeanPool()(codes)
    tensor([[3.7500]])
    """

    def __init__(self, keep: bool = False) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Coded) -> Tensor:
        if x.codes.ndim == 2:  # a row of numbers is a map of one pixel
            return x.value
        return x.codes.mean((2, 3), keepdim=self.keep, dtype=torch.float32) * x.step


class Addition(nn.Module):
    """Sum of real values, of which either may be codes (a shortcut).

    Examples
    --------
    >>> Addition()(torch.tensor([[1.0]]), Coded(torch.tensor([[3.0]]), torch.tensor(0.5), signed=False))
    tensor([[2.5000]])
    """

    def forward(self, x: Tensor | Coded, y: Tensor | Coded) -> Tensor:
        return real(x) + real(y)


class Concatenation(nn.Module):
    """Channels of several values side by side, as real numbers; a program rounds each to one common step.

    Examples
    --------
    >>> Concatenation()(torch.zeros(1, 2, 4, 4), torch.ones(1, 3, 4, 4)).shape
    torch.Size([1, 5, 4, 4])
    """

    def forward(self, *parts: Tensor | Coded) -> Tensor:
        return torch.cat([real(part) for part in parts], 1)


class Multiplication(nn.Module):
    """Product of codes and codes, of which the second may be one pixel, as real numbers.

    Examples
    --------
    >>> x = Coded(torch.ones(1, 8, 4, 4), torch.tensor(0.5), signed=False)
    >>> gate = Coded(torch.full((1, 8), 255.0), torch.tensor(0.25), signed=False)
    >>> Multiplication()(x, gate)[0, 0, 0]
    tensor([31.8750, 31.8750, 31.8750, 31.8750])
    """

    def forward(self, x: Coded, y: Coded) -> Tensor:
        pixel = y.codes if y.codes.ndim == x.codes.ndim else y.codes[..., None, None]
        return (x.codes.float() * pixel.float()) * (x.step * y.step)  # bfloat16 would round products


class WindowMean(nn.Module):
    """Mean of the codes of every window, padding included, as real numbers: a depthwise convolution of 1.

    Examples
    --------
    >>> codes = Coded(torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor(0.5), signed=False)
    >>> WindowMean((2, 2), stride=2, padding=0)(codes).flatten()
    tensor([1.2500, 2.2500, 5.2500, 6.2500])
    """

    def __init__(self, kernel: tuple[int, int], stride: int, padding: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Coded) -> Tensor:
        codes = functional.avg_pool2d(x.codes.float(), self.kernel, self.stride, self.padding)
        return codes * x.step


class Pointwise(nn.Module):
    """Any function of one number: a program has its table of 256 codes.

    Parameters
    ----------
    function : Module
        Of numbers, or of numbers and their channel as `PReLU`.

    Examples
    --------
    >>> Pointwise(nn.Hardswish())(Coded(torch.tensor([[-64.0, 64.0]]), torch.tensor(1 / 32), signed=True))
    tensor([[-0.3333,  1.6667]])
    """

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Coded) -> Tensor:
        return self.of(x.value)

    def of(self, x: Tensor) -> Tensor:
        """The function of real numbers, (N, C, ...)."""
        out: Tensor = self.function(x.clone() if getattr(self.function, "inplace", False) else x)
        return out

    @property
    def channels(self) -> int:
        """Functions there are: one for all channels, or one for each."""
        return int(getattr(self.function, "num_parameters", 1))


class Affine(nn.Module):
    """A batch norm that follows no layer: a gain and a bias for every channel, the same at all widths.

    Parameters
    ----------
    norm : BatchNorm1d or BatchNorm2d

    Examples
    --------
    >>> norm = nn.BatchNorm2d(1, eps=0.0)
    >>> _ = norm.running_mean.fill_(2.0)
    >>> Affine(norm).eval()(torch.tensor([[[[3.0]]]])).item()
    1.0
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm_of_maps(norm)

    def forward(self, x: Tensor | Coded) -> Tensor:
        values = real(x)
        out: Tensor = self.norm(values.reshape(*values.shape[:2], -1, 1)).reshape(values.shape)
        return out


class Scaled(nn.Module):
    """A gain and a bias that stand in the model as numbers: what is added to a value, or multiplies it.

    Examples
    --------
    >>> Scaled(2.0, 1.0)(torch.tensor([[3.0]]))
    tensor([[7.]])
    """

    def __init__(self, gain: float, bias: float) -> None:
        super().__init__()
        self.gain, self.bias = gain, bias

    def forward(self, x: Tensor | Coded) -> Tensor:
        return real(x) * self.gain + self.bias


@dataclass(frozen=True)
class Pick:
    """What a chain of moves takes of a map: the same as a 1x1 convolution of 0 and 1.

    Attributes
    ----------
    channels : tuple of int
        For every channel of the result, that of the map; -1: zeros.
    stride : int
        Distance of the pixels that are taken, from the first on.

    Examples
    --------
    >>> Picked(3, Pick(channels=(2, -1), stride=2)).weight[:, :, 0, 0]
    tensor([[0., 0., 1.],
            [0., 0., 0.]])
    """

    channels: tuple[int, ...]
    stride: int


def taken(x: Tensor, channels: Tensor, stride: int) -> Tensor:
    """What a `Pick` takes of (N, C, H, W).

    Parameters
    ----------
    x : tensor, (N, C, H, W)
    channels : int64 tensor, (outputs,)
        -1..C-1; -1: zeros.
    stride : int
        1 or more.

    Returns
    -------
    tensor, (N, outputs, ceil(H / stride), ceil(W / stride))

    Examples
    --------
    >>> taken(torch.arange(8.0).reshape(1, 2, 2, 2), torch.tensor([1, -1]), stride=2).flatten()
    tensor([4., 0.])
    """
    found = x[:, channels, ::stride, ::stride]
    return torch.where((channels < 0).reshape(-1, 1, 1), torch.zeros_like(found), found)


class Picked(nn.Module):
    """What slices, zero channels and shuffles of a model pick: a fixed 1x1 convolution of 0 and 1.

    Parameters
    ----------
    inputs : int
        Channels of what it picks from.
    pick : Pick

    Examples
    --------
    >>> x = Coded(torch.arange(8.0).reshape(1, 2, 2, 2), torch.tensor(0.5), signed=False)
    >>> Picked(2, Pick(channels=(1, -1), stride=2))(x).flatten()
    tensor([2., 0.])
    """

    channels: Tensor

    def __init__(self, inputs: int, pick: Pick) -> None:
        super().__init__()
        self.inputs, self.stride = inputs, pick.stride
        self.register_buffer("channels", torch.tensor(pick.channels), persistent=False)

    def forward(self, x: Coded) -> Tensor:
        return taken(x.value, self.channels, self.stride)

    @property
    def weight(self) -> Tensor:
        """Of the convolution, (outputs, inputs, 1, 1)."""
        return (self.channels[:, None] == torch.arange(self.inputs)).float()[..., None, None]
