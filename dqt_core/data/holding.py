"""A place that one process at a time works in: the system lets go of it however the process ends."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from dqt_core.data.datasets import DataError

_HELD: set[int] = set()  # open files of this process


def _let_go() -> None:
    """A fork, such as a process that decodes, must not hold what its parent held, and outlive it."""
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def held(path: Path, doing: str) -> Iterator[None]:
    """Within, no other call of this holds the folder or file, in this process or another.

    Where the file system or the operating system has no locks nothing is held.

    Parameters
    ----------
    path : Path
        A folder; or a file, which is made, and says which process holds it.
    doing : str
        What is done there, for the error of who comes second.

    Raises
    ------
    DataError
        If it is held.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, held(Path(folder) / "lock", "training"):
    ...     print((Path(folder) / "lock").read_text().split()[0])
    process
    """
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    _HELD.add(number)
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = "another process" if path.is_dir() else os.pread(number, 300, 0).decode()
                raise DataError(f"{holder} is {doing}; wait for it, or stop it") from error
            os.ftruncate(number, 0)
            os.pwrite(number, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        if number in _HELD:  # not in a fork
            _HELD.remove(number)
            os.close(number)
