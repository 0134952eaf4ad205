"""Files of programs: a safetensors file whose header lists the operations; its tensors are their tables."""

import dataclasses
import hashlib
import json
import os
import secrets
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dqt_core.program.operations import KINDS, Term
from dqt_core.program.refusal import ProgramError

FORMAT = "dqt-program-1"
METADATA = "dqt_core"
_KINDS = {kind.__name__: kind for kind in (*KINDS, Term)}
Tensors = Mapping[str, NDArray[Any]]
Made = TypeVar("Made")


def write(path: Path, program: Any, digest: str) -> None:
    """Write a program's file, whole or not at all.

    Parameters
    ----------
    path : Path
        Its folder is there; `read` wants the first 12 digits of the digest in its name.
    program : Program
    digest : str
        Of the program, 64 hexadecimal digits.

    Raises
    ------
    OSError
        If it cannot be written; what was there stays.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from dqt_core import Program, load
    >>> program = load("digits")
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / f"{program.digest[:12]}.safetensors"
    ...     write(path, program, program.digest)
    ...     print(read(path, Program).digest == program.digest)
    True
    """
    header, tensors = encode(program)
    # One entry: safetensors writes several in random order, and equal programs are to be equal files.
    metadata = json.dumps({"format": FORMAT, "digest": digest, "program": header})
    write_whole(path, save(tensors, {METADATA: metadata}))


def read(path: Path, make: Callable[..., Made]) -> Made:
    """What `make` makes of the fields of a program's file.

    Parameters
    ----------
    path : Path
    make : callable
        `Program`: it takes the fields by name.

    Returns
    -------
    Program

    Raises
    ------
    ProgramError
        As `dqt_core.load`.

    Examples
    --------
    >>> from dqt_core.program.program import DIGITS, Program
    >>> read(DIGITS, Program).name
    'resnet18_embedded'
    """
    if not path.is_file():
        raise ProgramError(f'{path} does not exist; give the path of a program, or "digits"')
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA, "{}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, AttributeError, TypeError) as error:
        raise ProgramError(
            f"{path} is no program, or a damaged one ({_short(error)}); give one that Program.save wrote, or "
            "get the file again"
        ) from error
    try:
        program = _parsed(text, tensors, make)
    except ProgramError as error:
        raise ProgramError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ProgramError(
            f"{path} was edited: {_short(repr(error))} in its header; get the file again"
        ) from error
    if program.digest[:12] not in path.name:
        own = f"{program.name}-{program.digest[:12]}.safetensors"
        raise ProgramError(f"{path} is not the program of that name; call it {own}")
    return program


def _short(reason: object) -> str:
    """What a library says, which may hold the whole file."""
    return textwrap.shorten(str(reason), 200)


def _parsed(text: str, tensors: Tensors, make: Callable[..., Any]) -> Any:
    """A program of the two parts of its file, which are as `Program.save` writes them."""
    metadata = json.loads(text)
    if metadata.get("format") != FORMAT:
        raise ProgramError(f"it has format {metadata.get('format')!r}, expected {FORMAT!r}; lower it again")
    header = metadata["program"]
    digest = digest_of(header, tensors)
    if digest != metadata.get("digest"):
        raise ValueError("its digest is not that of its contents")
    program = make(**_decode(header, tensors))
    again, used = encode(program)
    if again != header or used.keys() != tensors.keys():
        raise ValueError("it holds more than a program")
    program.__dict__["digest"] = digest  # the same by now, and not to be worked out twice
    return program


def digest_of(header: str, tensors: Tensors) -> str:
    """sha256 of a header and its tensors.

    Parameters
    ----------
    header : str
    tensors : mapping of str to integer array
        As `encode` makes both.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> digest_of("{}", {"codes": np.arange(3, dtype=np.int8)})[:12]
    'ab8140d1300a'
    """
    sha = hashlib.sha256(header.encode())
    for key in sorted(tensors):
        sha.update(f"{key} {tensors[key].dtype.str} {tensors[key].shape}".encode())
        sha.update(np.ascontiguousarray(tensors[key]).tobytes())
    return sha.hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a whole file or none, whoever else writes it: under a name of its own first, which is no link.

    Parameters
    ----------
    path : Path
        Its folder is there.
    content : bytes

    Raises
    ------
    OSError
        If it cannot be written; what was there stays.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_whole(Path(folder) / "note", b"whole")
    ...     print([path.name for path in Path(folder).iterdir()])
    ['note']
    """
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.unfinished")
    try:
        with unfinished.open("xb") as file:
            file.write(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def encode(program: Any) -> tuple[str, dict[str, NDArray[Any]]]:
    """The header and the tensors of a program.

    Parameters
    ----------
    program : Program

    Returns
    -------
    header : str
        JSON of all fields; an array stands there by its key.
    tensors : dict of str to integer array

    Examples
    --------
    >>> from dqt_core import load
    >>> header, tensors = encode(load("digits"))
    >>> json.loads(header)["ops"][0]["table"], tensors["ops.0.table"].shape
    ({'tensor': 'ops.0.table'}, (3, 256))
    """
    tensors: dict[str, NDArray[Any]] = {}

    def plain(value: Any, key: str) -> Any:
        if isinstance(value, np.ndarray):
            tensors[key] = value
            return {"tensor": key}
        if dataclasses.is_dataclass(value):
            fields = {
                f.name: plain(getattr(value, f.name), f"{key}.{f.name}")
                for f in dataclasses.fields(value)
                if not f.metadata or getattr(value, f.name) != f.default
            }
            return {"kind": type(value).__name__, **fields}
        if isinstance(value, tuple):
            return [plain(item, f"{key}.{i}") for i, item in enumerate(value)]
        return value

    header = {f.name: plain(getattr(program, f.name), f.name) for f in dataclasses.fields(program)}
    return json.dumps(header, sort_keys=True, separators=(",", ":")), tensors


def _decode(header: str, tensors: Tensors) -> dict[str, Any]:
    def rich(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(rich(item) for item in value)
        if isinstance(value, dict) and "tensor" in value:
            return tensors[value["tensor"]]
        if isinstance(value, dict):
            return _KINDS[value["kind"]](**{k: rich(v) for k, v in value.items() if k != "kind"})
        return value

    return {name: rich(value) for name, value in json.loads(header).items()}
