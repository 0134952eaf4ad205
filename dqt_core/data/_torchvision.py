"""Import torchvision beside a CPU build of torch.

PyPI's torchvision wheel is built against CUDA. Beside a CPU-only torch its C++ library cannot load, so the
operator ``torchvision::nms`` is never defined and the import stops. Data sets, transforms and models need no
C++ operator: declaring the two missing ones lets the import pass. Where torch and torchvision match, this
does nothing.
"""

import sys
from types import ModuleType

from dqt_core._extras import needed

with needed("torchvision", "train"):
    import torch

_library: torch.library.Library | None = None  # the operators vanish with this object


def import_torchvision() -> ModuleType:
    """Return the torchvision module.

    Returns
    -------
    module
        torchvision, without its C++ operators beside a CPU-only torch.

    Raises
    ------
    ImportError
        If torchvision is not installed.

    Examples
    --------
    >>> import_torchvision().__name__
    'torchvision'
    """
    global _library
    try:
        with needed("this data set", "train"):
            import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision
