"""Numba's cache on disk, without which a run goes on: what is damaged is compiled anew."""

import hashlib
import pickle
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

SIZE = hashlib.sha256().digest_size


def require_compiler() -> None:
    """Refuse to go on where Numba may not compile, as its variables say now: it reads them when it begins."""
    numba.config.reload_config()
    if numba.config.DISABLE_JIT:
        raise ImportError(
            'backend "numba" needs Numba\'s compiler, which NUMBA_DISABLE_JIT turns off: unset it, or choose '
            "another backend"
        )


def kept(*parts: ModuleType, **options: bool) -> Callable[..., Any]:
    """Numba's decorator for what Python calls, kept on disk where a folder of the cache can be written to.

    parts : modules of the functions that it calls, whose edits are edits of it
    """
    require_compiler()

    def decorate(function: Callable[..., Any]) -> Any:
        made = numba.njit(nogil=True, error_model="numpy", **options)(function)
        try:
            made._cache = _Cache(function, parts)  # as `enable_caching` does
            made.is_kept = True
        except RuntimeError:  # Numba found no such folder
            made.is_kept = False
        return made

    return decorate


class _Cache(FunctionCache):
    """Numba's cache of one function; a full disk is no error."""

    def __init__(self, function: Callable[..., Any], parts: Iterable[ModuleType]) -> None:
        super().__init__(function)
        # Numba's own stamp, time and size, is the same after some edits, and where a clock was put back
        files = function.__code__.co_filename, *(part.__file__ or "" for part in parts)
        stamp = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
        # a checkout that two environments share: another Numba's files cannot even be looked into
        name = f"{self._impl.filename_base}.whole-{numba.__version__}"
        self._cache_file = _Files(self._cache_path, name, stamp)

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _say(f"{self._cache_path} could not keep the compiled kernels ({error}): make room there, or set")


class _Files(IndexDataCacheFile):
    """Files that begin with their sha256: damaged object code makes LLVM end the process."""

    def _load_index(self) -> dict[Any, str]:
        found = self._read(self._index_path)
        version, stamp, overloads = found or (None, None, {})
        return overloads if (version, stamp) == (self._version, self._source_stamp) else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._write(self._index_path, (self._version, self._source_stamp, overloads))

    def _load_data(self, name: str) -> Any:
        return self._read(self._data_path(name))

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), data)

    def _read(self, path: str) -> Any:
        """What was written; None if there is nothing, or something else."""
        try:
            content = Path(path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _say(f"{path} cannot be read ({error}), the kernels are compiled anew: make it readable, or set")
            return None
        if hashlib.sha256(content[SIZE:]).digest() != content[:SIZE]:
            _say(f"{path} is damaged, the kernels are compiled anew: if that is said again, set")
            return None
        return pickle.loads(content[SIZE:])

    def _write(self, path: str, value: Any) -> None:
        content = self._dump(value)
        with self._open_for_write(path) as file:
            file.write(hashlib.sha256(content).digest() + content)


def _say(what: str) -> None:
    print(f"dqt_core: {what} NUMBA_CACHE_DIR to another folder", file=sys.stderr)
