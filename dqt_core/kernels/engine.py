"""What the backend of the GPU needs from whoever runs its kernels: CuPy on a GPU, the emulator on a CPU."""

from typing import Any, Protocol, TypeAlias

Sizes: TypeAlias = tuple[int, int, int]


class Kernel(Protocol):
    """A compiled kernel."""

    def __call__(self, grid: Sizes, block: Sizes, args: tuple[Any, ...]) -> None:
        """Run it once.

        Parameters
        ----------
        grid, block : three ints
            Blocks of the grid and threads of a block, along x, y and z.
        args : tuple
            In the order of the CUDA source: C-contiguous arrays of the engine, NumPy scalars (``np.int32``,
            ``np.int64``, ``np.float32``), None for a null pointer and `structs.Struct`.
        """


class Engine(Protocol):
    """Arrays and kernels of one device."""

    xp: Any
    """numpy or cupy."""

    def kernel(self, source: str, name: str, **defines: int) -> Kernel:
        """Return a kernel, compiled at its first use.

        Parameters
        ----------
        source : str
            File of `dqt_core.kernels`, without ``.cu``.
        name : str
            Its function.
        **defines : int
            Macros that choose the variant.
        """
