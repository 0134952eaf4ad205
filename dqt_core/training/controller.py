"""The controller: a small MLP that picks every layer's widths from the stem's activation codes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqt_core.training.layers import Coded, MeanPool, Quantizer, Selection, SwitchLayer


class Controller(nn.Module):
    """Two-layer MLP on per-channel means of the stem's codes, itself in 8-bit codes.

    Parameters
    ----------
    channels : int
        Of the stem.
    layers : int
        Switchable layers.
    selection : Selection
        Shared by the network; filled where the pass asks for the controller.
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
        self, channels: int, layers: int, selection: Selection, hidden: int = 64, signed: bool = False
    ) -> None:
        super().__init__()
        self.shape = layers, len(selection.choices)
        self.selection, self.temperature = selection, 1.0
        self.pool, self.input = MeanPool(), Quantizer(signed)
        self.fc1 = SwitchLayer(nn.Linear(channels, hidden), None, selection, index=None)
        self.hidden = Quantizer(signed=False)
        last = nn.Linear(hidden, layers * len(selection.choices))
        nn.init.zeros_(last.bias)
        self.fc2 = SwitchLayer(last, None, selection, index=None)

    def logits(self, stem: Coded) -> Tensor:
        """Logits (N, L, K) from the stem's codes; no gradient reaches the stem."""
        mean = self.pool(Coded(stem.codes.detach(), stem.step.detach(), stem.signed))
        return self.fc2(self.hidden(self.fc1(self.input(mean)))).unflatten(1, self.shape)

    def forward(self, stem: Coded) -> Coded:
        """Fill the selection if the pass asks for it; the codes pass through unchanged."""
        if self.input.is_calibrating:
            self.logits(stem)
        if self.selection.by_controller:
            logits = self.logits(stem).float()
            self.selection.probabilities = logits.softmax(-1)
            self.selection.per_layer = self._choose(logits)
        return stem

    def _choose(self, logits: Tensor) -> Tensor:
        if self.training:
            return functional.gumbel_softmax(logits, self.temperature, hard=True)
        # torch.argmax returns the first of equal values: the narrower choice
        return functional.one_hot(logits.argmax(-1), self.shape[1]).to(torch.float32)
