"""The kernels of switch.cu on the emulator, in both thread orders."""

import numpy as np
import pytest
from kernel_checks import SWITCH_CHECKS, every_pair

from dqt_core import nested
from dqt_core.kernels.emulator import Emulator

ENGINES = {"forward": Emulator(), "backward": Emulator(backwards=True), "checked": Emulator(checked=True)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("check", SWITCH_CHECKS, ids=lambda check: check.__name__)
def test_switch(check, engine):
    check(ENGINES[engine])


def test_the_pairs_are_all_pairs():
    words = every_pair().reshape(-1, 4)
    for first in range(3):
        assert len(np.unique(words[:, first : first + 2], axis=0)) == 1 << 16


def test_the_example_of_the_walk_through():
    for code, four_bits in ((88, 6), (248, 15)):
        assert nested.switch(np.array([code], np.uint8), 4) == four_bits
    at_4 = nested.switch(np.array([24], np.uint8), 4)
    assert (at_4, nested.switch(at_4 << 4, 2), nested.switch(np.array([24], np.uint8), 2)) == (2, 1, 0)
