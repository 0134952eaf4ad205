"""The kernels of conv.cu and depthwise.cu on the emulator, in both thread orders."""

import pytest
from conv_checks import CONV_CHECKS, DEPTHWISE_CHECKS
from grouped_checks import GROUPED_CHECKS

from dqt_core.kernels.emulator import Emulator

ENGINES = {"forward": Emulator(), "backward": Emulator(backwards=True), "checked": Emulator(checked=True)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "check", CONV_CHECKS + DEPTHWISE_CHECKS + GROUPED_CHECKS, ids=lambda check: check.__name__
)
def test_convolution(check, engine):
    check(ENGINES[engine])
