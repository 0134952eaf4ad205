"""The kernels of pointwise.cu on the emulator, in both thread orders."""

import pytest
from pointwise_checks import POINTWISE_CHECKS

from dqt_core.kernels.emulator import Emulator

ENGINES = {"forward": Emulator(), "backward": Emulator(backwards=True), "checked": Emulator(checked=True)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("check", POINTWISE_CHECKS, ids=lambda check: check.__name__)
def test_pointwise(check, engine):
    check(ENGINES[engine])
