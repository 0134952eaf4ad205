"""The record of a run on a GPU: written after every step, so that a run that is cut keeps what it has."""

import re
from pathlib import Path

from dqt_core import results
from dqt_core.evaluation.consistency import write_signed

SCHEMA = "dqt-gpu-1"


class Record:
    """A JSON file that is whole at any moment."""

    def __init__(self, folder, machine):
        origin = results.provenance()
        self.data = {
            "schema": SCHEMA,
            "date": origin["date"],
            "commit": origin["commit"],
            "python": origin["python"],
            "machine": machine,
            "checks": [],
            "rows": [],
            "finished": False,
        }
        device = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
        self.path = Path(folder) / f"{device}-{origin['date']}.json"

    def check(self, name, passed, seconds, detail):
        """Add the outcome of a check: True, False, or None where it was not run."""
        self.data["checks"].append(
            {"name": name, "passed": passed, "seconds": round(seconds, 1), "detail": detail}
        )
        self.write()

    def row(self, row):
        """Add a measurement."""
        self.data["rows"].append(row)
        self.write()

    def finish(self):
        """Say whether anything was left out for want of time."""
        self.data["finished"] = not any("no time left" in check["detail"] for check in self.data["checks"])
        self.write()

    def write(self):
        """Replace the file at once."""
        write_signed(self.data, self.path)


def machine(cupy):
    """What the measurements were made on."""
    import torch

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    runtime = cupy.cuda.runtime
    return {
        "device": properties["name"].decode(),
        "compute": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_gib": round(properties["totalGlobalMem"] / 2**30, 1),
        "driver": _driver(),
        "driver_cuda": _dotted(runtime.driverGetVersion()),
        "cuda": _dotted(runtime.runtimeGetVersion()),
        "cupy": cupy.__version__,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver():
    version = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b(\d+\.\d+(\.\d+)?)\b", version.read_text()) if version.exists() else None
    return found[1] if found else "unknown"


def _dotted(version):
    return f"{version // 1000}.{version % 1000 // 10}"
