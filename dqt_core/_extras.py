"""What is not installed with the package itself, in one sentence that says how it is."""

import contextlib
from collections.abc import Iterator


def install(extra: str) -> str:
    """The command that installs an extra: no index has the package, so it names a checkout or a wheel.

    Parameters
    ----------
    extra : str
        Of ``pyproject.toml``.

    Returns
    -------
    str

    Examples
    --------
    >>> install("train")
    'pip install -e ".[train]" in a checkout, or pip install "./FILE.whl[train]" beside a wheel'
    """
    return f'pip install -e ".[{extra}]" in a checkout, or pip install "./FILE.whl[{extra}]" beside a wheel'


@contextlib.contextmanager
def needed(what: str, extra: str) -> Iterator[None]:
    """Around imports that an extra brings: where one is missing, say who needs it and how to install it.

    Parameters
    ----------
    what : str
        Whoever needs it.
    extra : str
        Of ``pyproject.toml``.

    Raises
    ------
    ModuleNotFoundError
        In place of the one that names the module alone.

    Examples
    --------
    >>> with needed("drawing", "book"):
    ...     import no_such_module
    Traceback (most recent call last):
    ModuleNotFoundError: drawing needs no_such_module: pip install -e ".[book]" in a checkout, or pip \
install "./FILE.whl[book]" beside a wheel
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"{what} needs {error.name}: {install(extra)}"
        raise ModuleNotFoundError(message, name=error.name) from error
