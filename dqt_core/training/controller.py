"""The controller: a small MLP that picks every layer's widths from the stem's activation codes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqt_core.nested import Rounding
from dqt_core.training.layers import Choice, Coded, Quantizer, Selection, SwitchLayer
from dqt_core.training.parts import MeanPool


class Controller(nn.Module):
    """Two-layer MLP on per-channel means of the stem's codes, itself in 8-bit codes.

    Parameters
    ----------
    channels : int
        Of the stem.
    layers : int
        Switchable layers.
    choices : tuple of (weight bits, input bits)
        Of the network.
    rounding : {"half_up", "floor"}
    hidden : int
        64 in the paper.
    signed : bool
        Whether the stem's codes are: no ReLU precedes them.

    Notes
    -----
    DQT, section on the controller: logits (layers x choices), softmax in training, argmax at inference; ties
    go to the narrower choice. Gumbel-softmax is hard with a straight-through gradient.
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        choices: tuple[Choice, ...],
        rounding: Rounding,
        hidden: int = 64,
        signed: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.temperature = (layers, len(choices)), 1.0
        self.pool, self.input = MeanPool(), Quantizer(signed)
        self.fc1 = SwitchLayer(nn.Linear(channels, hidden), None, choices, rounding, index=None)
        self.hidden = Quantizer(signed=False)
        last = nn.Linear(hidden, layers * len(choices))
        nn.init.zeros_(last.bias)
        self.fc2 = SwitchLayer(last, None, choices, rounding, index=None)

    def logits(self, stem: Coded, selection: Selection) -> Tensor:
        """Logits (N, L, K) from the stem's codes; no gradient reaches the stem."""
        mean = self.pool(Coded(stem.codes.detach(), stem.step.detach(), stem.signed))
        hidden = self.hidden(self.fc1(self.input(mean, selection), selection), selection)
        return self.fc2(hidden, selection).unflatten(1, self.shape)

    def forward(self, stem: Coded, selection: Selection) -> Coded:
        """Fill the selection if the pass asks for it; the codes pass through unchanged."""
        if selection.is_calibrating:
            self.logits(stem, selection)
        if selection.by_controller:
            logits = self.logits(stem, selection).float()
            selection.probabilities = logits.softmax(-1)
            selection.per_layer = self._choose(logits)
        return stem

    def _choose(self, logits: Tensor) -> Tensor:
        if self.training:
            return functional.gumbel_softmax(logits, self.temperature, hard=True)
        # torch.argmax returns the first of equal values: the narrower choice
        return functional.one_hot(logits.argmax(-1), self.shape[1]).to(torch.float32)
