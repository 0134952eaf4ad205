"""A network of nested codes: every layer's width is an argument of the call."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, fx, nn

from dqt_core.nested import MASTER_WIDTH, Rounding
from dqt_core.training.controller import Controller
from dqt_core.training.layers import Choice, Selection, Shared, SwitchLayer, as_choice


class NestedNet(nn.Module):
    """A network whose layers read nested codes; made by `convert`.

    Attributes
    ----------
    graph : GraphModule
        The float model's graph with every part replaced; `lower` walks it.
    choices : tuple of (weight bits, input bits), from narrow to wide
    rounding : {"half_up", "floor"}
    mean, std : tuple of C floats
        The normalisation of the input.
    image_shape : tuple of int
        (H, W, C).
    differences : dict of str to float
        Relative, of each layer's output and of "the output", from the float model's at 8 bits, as measured
        when the network was converted.

    Examples
    --------
    >>> from dqt_core import convert
    >>> layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    >>> images = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8, 1)
    >>> net = convert(nn.Sequential(*layers), images, (0.5,), (0.25,), widths=(2, 4, 8))
    >>> net(torch.zeros(1, 1, 8, 8), 4).shape, len(net.switch_layers), net.index_of(4)
    (torch.Size([1, 2]), 1, 1)
    >>> net.bitops(torch.tensor([[[0.0, 1.0, 0.0]]]))  # of an image whose one switchable layer is at 4 bits
    tensor([156672.])
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        choices: tuple[Choice, ...],
        rounding: Rounding,
        mean: Sequence[float],
        std: Sequence[float],
        image_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.graph, self.choices, self.rounding = graph, choices, rounding
        self.mean, self.std, self.image_shape = tuple(mean), tuple(std), image_shape
        self.differences: dict[str, float] = {}
        self._compiled: Callable[[Tensor, Selection], Tensor] | None = None

    @property
    def switch_layers(self) -> list[SwitchLayer]:
        """The switchable layers in order."""
        layers = [m for m in self.graph.modules() if isinstance(m, SwitchLayer) and m.index is not None]
        return sorted(layers, key=lambda layer: layer.index or 0)

    @property
    def fixed_layers(self) -> list[SwitchLayer]:
        """The layers that stay at 8 bits: the first, the last, the controller's."""
        return [m for m in self.graph.modules() if isinstance(m, SwitchLayer) and m.index is None]

    @property
    def controller(self) -> Controller | None:
        """The controller, if the network has one."""
        return getattr(self.graph, "controller", None)

    def forward(
        self,
        images: Tensor,
        widths: int | str | Sequence[int | Choice] | Tensor = MASTER_WIDTH,
        shared: Shared | None = None,
    ) -> Tensor:
        """Logits of `run`.

        Parameters
        ----------
        images, widths, shared : as in `run`

        Returns
        -------
        float tensor, (N, classes)
        """
        return self.run(images, widths, shared)[0]

    def run(
        self,
        images: Tensor,
        widths: int | str | Sequence[int | Choice] | Tensor = MASTER_WIDTH,
        shared: Shared | None = None,
    ) -> tuple[Tensor, Selection]:
        """Logits at given widths, and what the controller chose.

        Parameters
        ----------
        images : float32 tensor, (N, C, H, W)
            Normalised, as the float model took them.
        widths : int, list of L, "controller", or tensor (N, L, K)
            One width for all switchable layers, one (or one pair) for each, the controller's choice for each
            image, or weights over the choices for each image.
        shared : dict, optional
            Empty at first. Passes that are given the same dict compute the weights' master codes once and,
            of the same `images`, what precedes the first switch; the running statistics of the norms there
            are updated once. Compiled passes share nothing: each is one function of the images.

        Returns
        -------
        logits : float tensor, (N, classes)
        selection : Selection

        Raises
        ------
        ValueError
            If the images are no floats of that shape, a width is not among the network's choices, there are
            too many or too few, or there is no controller.
        """
        if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != self.image_shape[2]:
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}, expected float32 "
                f"(N, {self.image_shape[2]}, H, W), normalised; see calibration.inputs(net, images)"
            )
        per_layer = self._per_layer(widths)
        is_uniform = isinstance(per_layer, list) and len(set(per_layer)) == 1 and not isinstance(widths, str)
        is_compiled = self._compiled is not None and is_uniform and self.graph.training
        selection = Selection(per_layer, isinstance(widths, str), shared=None if is_compiled else shared)
        graph = self._compiled if self._compiled and is_compiled else self.graph
        return graph(images, selection).flatten(1), selection  # of one pixel, where a convolution comes last

    @contextmanager
    def compiled(self) -> Iterator["NestedNet"]:
        """The network whose training passes at one width for all layers are compiled, once for each width.

        It has the same parts, and is of use within alone.
        """
        net = copy.copy(self)  # no registered module: the state of a network is to hold every weight once
        net.__dict__.pop("forward", None)  # Accelerate's, which calls the network that it was made for
        net._compiled = functools.partial(torch.compile(self.graph, dynamic=False))
        limit = 2 * len(self.choices) + 8  # graphs that one code may have
        with torch._dynamo.config.patch(recompile_limit=limit):
            yield net

    def bitops(self, weights: Tensor) -> Tensor:
        """Expected BitOPs of each image (N,), float32, for weights over the choices (N, L, K), float32 0..1.

        The controller's are among them.
        """
        cost = torch.tensor([float(w * a) for w, a in self.choices], device=weights.device)
        macs = torch.tensor([float(layer.macs) for layer in self.switch_layers], device=weights.device)
        fixed = sum(layer.macs for layer in self.fixed_layers) * MASTER_WIDTH**2
        # no matrix product: autocast would round the costs to bf16
        return ((weights * cost).sum(-1) * macs).sum(-1) + fixed

    def _per_layer(self, widths: int | str | Sequence[int | Choice] | Tensor) -> list[int] | Tensor:
        layers = len(self.switch_layers)
        if isinstance(widths, Tensor) and (widths.ndim > 1 or widths.is_floating_point()):
            expected = layers, len(self.choices)
            if widths.ndim != 3 or widths.shape[1:] != expected:
                raise ValueError(
                    f"weights over the choices are {tuple(widths.shape)}, expected (N, {expected})"
                )
            return widths
        if isinstance(widths, str):
            if widths != "controller" or self.controller is None:
                raise ValueError(
                    f"widths={widths!r}: give an int, a list, or 'controller' on a network with one"
                )
            return list(self.controller.before)
        if isinstance(widths, Tensor | np.ndarray | np.generic):
            widths = widths.tolist()
        if isinstance(widths, int):
            widths = [widths] * layers
        listed = list(widths)
        if isinstance(widths, tuple) and layers == 2 and widths in self.choices and len(set(widths)) > 1:
            raise ValueError(
                f"widths={widths} may be a width for each of the 2 layers, or a pair for both; give "
                f"{listed} or [{widths}] * 2"
            )
        if len(listed) != layers:
            raise ValueError(f"got {len(listed)} widths for {layers} switchable layers")
        return [self.index_of(width) for width in listed]

    def index_of(self, width: int | Choice) -> int:
        """Index of a width, or pair of widths, among the choices.

        Parameters
        ----------
        width : int or (weight bits, input bits)

        Returns
        -------
        int
            0..K-1.

        Raises
        ------
        ValueError
            If the network has no such choice.
        """
        pair = as_choice(width)
        if pair not in self.choices:
            raise ValueError(f"width {width} is not among this network's choices {self.choices}")
        return self.choices.index(pair)
