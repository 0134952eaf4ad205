"""The kernels of planes.cu on the emulator, in both thread orders."""

import pytest
from kernel_checks import PLANES_CHECKS

from dqt_core.kernels.emulator import Emulator

ENGINES = {"forward": Emulator(), "backward": Emulator(backwards=True), "checked": Emulator(checked=True)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("check", PLANES_CHECKS, ids=lambda check: check.__name__)
def test_planes(check, engine):
    check(ENGINES[engine])
