"""The CUDA sources, and an emulator that runs them without a GPU."""

from importlib import resources


def source(name: str) -> str:
    """Text of a file of this package.

    Parameters
    ----------
    name : str
        With its ending.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        If there is none.

    Examples
    --------
    >>> "switch4" in source("common.cuh")
    True
    """
    return resources.files("dqt_core.kernels").joinpath(name).read_text(encoding="utf-8")
