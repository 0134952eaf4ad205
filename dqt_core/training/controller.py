"""The controller: a small MLP that picks layers' widths from the activation codes in front of them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqt_core.nested import Rounding
from dqt_core.training.layers import Choice, Coded, Quantizer, Selection, SwitchLayer
from dqt_core.training.parts import MeanPool

SPREAD_GAIN = 4  # of the mean squares, which then are about as large as the means


class Controller(nn.Module):
    """Two-layer MLP on per-channel means of codes, the stem's as a rule, itself in 8-bit codes.

    Parameters
    ----------
    channels : int
        Of the codes.
    layers : int
        Switchable layers behind them, whose choices it picks.
    choices : tuple of (weight bits, input bits)
        Of the network.
    rounding : {"half_up", "floor"}
    hidden : int
        64 in the paper.
    signed : bool
        Whether the codes are: no ReLU precedes them.
    before : tuple of int
        For every switchable layer in front of it, the choice that it has where the controller picks [ours].
    spread : bool
        Whether it reads the mean square of every channel beside the mean [ours].

    Notes
    -----
    DQT, section on the controller: logits (layers x choices), softmax in training, argmax at inference; ties
    go to the narrower choice. Gumbel-softmax is hard with a straight-through gradient; where `is_noisy` is
    False [ours], training takes the best choice as inference does, with the same gradient.

    Examples
    --------
    >>> controller = Controller(channels=8, layers=3, choices=((2, 2), (4, 4), (8, 8)), rounding="half_up")
    >>> stem = Coded(torch.ones(5, 8, 4, 4), torch.tensor(0.1), signed=False)
    >>> controller.logits(stem, Selection()).shape
    torch.Size([5, 3, 3])
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        choices: tuple[Choice, ...],
        rounding: Rounding,
        hidden: int = 64,
        signed: bool = False,
        before: tuple[int, ...] = (),
        spread: bool = False,
    ) -> None:
        super().__init__()
        self.before, self.spread = before, spread
        self.shape, self.temperature, self.is_noisy = (layers, len(choices)), 1.0, True
        self.pool, self.input = MeanPool(), Quantizer(signed)
        self.fc1 = SwitchLayer(
            nn.Linear((1 + spread) * channels, hidden), None, choices, rounding, index=None
        )
        self.hidden = Quantizer(signed=False)
        last = nn.Linear(hidden, layers * len(choices))
        nn.init.zeros_(last.bias)
        self.fc2 = SwitchLayer(last, None, choices, rounding, index=None)

    def logits(self, stem: Coded, selection: Selection) -> Tensor:
        """Logits (N, L, K) of the layers it picks for, from codes that no gradient reaches."""
        hidden = self.hidden(self.fc1(self.input(self._features(stem), selection), selection), selection)
        return self.fc2(hidden, selection).unflatten(1, self.shape)

    def _features(self, stem: Coded) -> Tensor:
        codes, step = stem.codes.detach(), stem.step.detach()
        mean: Tensor = self.pool(Coded(codes, step, stem.signed))
        if not self.spread:
            return mean
        return torch.cat([mean, self.pool(Coded(squared(codes), SPREAD_GAIN * step, signed=False))], 1)

    def forward(self, stem: Coded, selection: Selection) -> Coded:
        """Fill the selection if the pass asks for it; the codes pass through unchanged."""
        if selection.is_calibrating:
            self.logits(stem, selection)
        if selection.by_controller:
            logits = self.logits(stem, selection).float()
            selection.probabilities = self._of_all_layers(logits.softmax(-1))
            selection.per_layer = self._of_all_layers(self._choose(logits))
        return stem

    def _of_all_layers(self, weights: Tensor) -> Tensor:
        """Weights over the choices (N, L, K), with those of the layers in front."""
        if not self.before:
            return weights
        before = functional.one_hot(torch.tensor(self.before, device=weights.device), self.shape[1])
        return torch.cat([before.to(weights).expand(len(weights), -1, -1), weights], 1)

    def _choose(self, logits: Tensor) -> Tensor:
        if self.training and self.is_noisy:
            return functional.gumbel_softmax(logits, self.temperature, hard=True)
        # torch.argmax returns the first of equal values: the narrower choice
        best = functional.one_hot(logits.argmax(-1), self.shape[1]).to(torch.float32)
        if not self.training:
            return best
        soft = (logits / self.temperature).softmax(-1)
        return best - soft.detach() + soft


def squared(codes: Tensor) -> Tensor:
    """Codes 0..255 for the squares of codes, in units of 255 steps.

    Parameters
    ----------
    codes : tensor
        Integers -128..255.

    Returns
    -------
    float32 tensor
        Of the same shape.

    Examples
    --------
    >>> squared(torch.tensor([0, 11, 12, -128, 255]))
    tensor([  0.,   0.,   1.,  64., 255.])
    """
    return torch.floor((codes.float() ** 2 + 127) / 255)
