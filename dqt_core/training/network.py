"""A network of nested codes: every layer's width is an argument of the call."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, fx, nn

from dqt_core.nested import MASTER_WIDTH
from dqt_core.training.controller import Controller
from dqt_core.training.layers import Choice, Selection, Shared, SwitchLayer


class NestedNet(nn.Module):
    """A network whose layers read nested codes; made by `convert`.

    Attributes
    ----------
    graph : GraphModule
        The float model's graph with every part replaced; `lower` walks it.
    selection : Selection
        The widths of the running pass.
    mean, std : tuple of 3 floats
        The normalisation of the input.
    image_shape : tuple of int
        (H, W, 3).
    differences : dict of str to float
        Relative, of each layer's output and of "the output", from the float model's at 8 bits, as measured
        when the network was converted.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        selection: Selection,
        mean: Sequence[float],
        std: Sequence[float],
        image_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.graph, self.selection = graph, selection
        self.mean, self.std, self.image_shape = tuple(mean), tuple(std), image_shape
        self.differences: dict[str, float] = {}
        self._compiled: Callable[[Tensor], Tensor] | None = None

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
        self, images: Tensor, widths: int | str | Sequence[int | Choice] | Tensor = MASTER_WIDTH
    ) -> Tensor:
        """Logits at given widths.

        Parameters
        ----------
        images : float32 tensor, (N, 3, H, W)
            Normalised, as the float model took them.
        widths : int, list of L, "controller", or tensor (N, L, K)
            One width for all switchable layers, one (or one pair) for each, the controller's choice for each
            image, or weights over the choices for each image.

        Returns
        -------
        float tensor, (N, classes)

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
        selection = self.selection
        selection.by_controller = isinstance(widths, str)
        selection.per_layer = per_layer = self._per_layer(widths)
        is_uniform = isinstance(per_layer, list) and len(set(per_layer)) == 1
        graph = self._compiled if self._compiled and is_uniform and self.training else self.graph
        return graph(images)

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Within, training passes at one width for all layers are compiled, once for each width."""
        # no registered module: the state of the network is to hold every weight once
        self._compiled = functools.partial(torch.compile(self.graph, dynamic=False))
        limit = 2 * len(self.selection.choices) + 8  # graphs that one code may have
        try:
            with torch._dynamo.config.patch(recompile_limit=limit):
                yield
        finally:
            self._compiled = None

    @contextmanager
    def shared_masters(self) -> Iterator[None]:
        """Within, the weights' master codes, and what precedes the first switch, are computed once.

        The passes share them; the running statistics of the norms there are updated once. Compiled passes
        share nothing: each is one function of the images.
        """
        if self._compiled:
            yield
            return
        parts = [module for module in self.graph.modules() if isinstance(module, Shared)]
        self.selection.share_masters = True
        for part in parts:
            part.keep(True)
        try:
            yield
        finally:
            self.selection.share_masters = False
            for part in parts:
                part.keep(False)
            for layer in self.switch_layers + self.fixed_layers:
                layer._master = None

    def bitops(self, weights: Tensor) -> Tensor:
        """Expected BitOPs of each image (N,) for weights over the choices (N, L, K), controller included."""
        cost = torch.tensor([float(w * a) for w, a in self.selection.choices], device=weights.device)
        macs = torch.tensor([float(layer.macs) for layer in self.switch_layers], device=weights.device)
        fixed = sum(layer.macs for layer in self.fixed_layers) * MASTER_WIDTH**2
        # no matrix product: autocast would round the costs to bf16
        return ((weights * cost).sum(-1) * macs).sum(-1) + fixed

    def _per_layer(self, widths: int | str | Sequence[int | Choice] | Tensor) -> list[int] | Tensor:
        layers = len(self.switch_layers)
        if isinstance(widths, Tensor) and (widths.ndim > 1 or widths.is_floating_point()):
            expected = layers, len(self.selection.choices)
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
            return []
        if isinstance(widths, Tensor | np.ndarray | np.generic):
            widths = widths.tolist()
        if isinstance(widths, int):
            widths = [widths] * layers
        listed = list(widths)
        if (
            isinstance(widths, tuple)
            and layers == 2
            and widths in self.selection.choices
            and len(set(widths)) > 1
        ):
            raise ValueError(
                f"widths={widths} may be a width for each of the 2 layers, or a pair for both; give "
                f"{listed} or [{widths}] * 2"
            )
        if len(listed) != layers:
            raise ValueError(f"got {len(listed)} widths for {layers} switchable layers")
        return [self.selection.index_of(width) for width in listed]
