"""Build the book into _build/html; any warning is an error.

Cells are executed once and their outputs cached in _build/.jupyter_cache. That cache looks at a page's cells
alone, so it is thrown away whenever something that the cells import or read has changed.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys

from dqt_book.places import ROOT

BUILD = ROOT / "_build"
CACHE = BUILD / ".jupyter_cache"
KEY = BUILD / "jupyter_cache.key"
# Figures are drawn with the fonts and settings of matplotlib itself, whatever the user has:
# a list of fonts from an environment that is gone is enough to draw another picture.
MATPLOTLIB = BUILD / "matplotlib"
# What a chapter's cells can see besides their own text.
INPUTS = ("requirements.txt", "dqt_core/**/*", "dqt_book/**/*", "book/assignments/**/*", "reproductions/**/*")
# Pages are many small objects that live to the end: Python's collector would walk them again and again.
JUPYTER_BOOK = "import gc, sys; gc.disable(); from jupyter_book.cli.main import main; main(sys.argv[1:])"
# What is said when kernels are compiled or fonts are listed for the first time belongs into no page.
PREPARE = {
    "numba": "from dqt_core.backends import numba_cpu; numba_cpu.prepare()",
    "matplotlib": "import matplotlib.font_manager",
}


def cache_key() -> str:
    digest = hashlib.sha256(f"{sys.version} {os.environ.get('DQT_DATA')}".encode())
    files = {path for pattern in INPUTS for path in ROOT.glob(pattern)}
    for path in sorted(path for path in files if path.is_file()):
        if "__pycache__" not in path.parts and ".ipynb_checkpoints" not in path.parts:
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def written_to_stderr() -> list[str]:
    """What the cells of the executed pages wrote there; the warning about it names the cell alone."""
    executed = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(CACHE.glob("executed/*/base.ipynb"))
    ]
    outputs = [out for page in executed for cell in page["cells"] for out in cell.get("outputs", ())]
    return ["".join(out["text"]) for out in outputs if out.get("name") == "stderr"]


def build() -> int:
    # A page that is not rebuilt is not checked for warnings: start without pages, keep executed cells.
    for folder in (BUILD / "html", BUILD / ".doctrees", MATPLOTLIB):
        shutil.rmtree(folder, ignore_errors=True)
    key = cache_key()
    if not KEY.is_file() or KEY.read_text() != key:
        shutil.rmtree(CACHE, ignore_errors=True)
        BUILD.mkdir(exist_ok=True)
        KEY.write_text(key)
    # The kernel named python3 must be this environment's, not one that the user has installed elsewhere.
    own = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1", "MPLCONFIGDIR": str(MATPLOTLIB)}
    for package, program in PREPARE.items():
        if importlib.util.find_spec(package):
            subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=own, check=True)
    subprocess.run([sys.executable, "-m", "dqt_book.pages.execution"], cwd=ROOT, env=own, check=True)
    command = [sys.executable, "-c", JUPYTER_BOOK, "build", "-W", "--keep-going", ROOT]
    result = subprocess.run(command, env=own).returncode
    if result:
        for text in written_to_stderr():
            print(f"ERROR: a cell wrote to stderr: {text}", file=sys.stderr)
    return result


if __name__ == "__main__":
    sys.exit(build())
