"""A campaign against all that is handed to the package: random cases, judged strictly, for some minutes.

    python tests/fuzz.py [MINUTES [SEED]]     all targets; exits 1 where something was found
    python tests/fuzz.py FINDING.json         one finding again

A target draws a case, which is JSON, and judges it in another process: what dies, hangs or swallows memory is
found like what raises. The time is dealt to the targets by their shares. Of each kind of fault the first
case is made smaller, part by part, as long as it shows the same fault, and written to `_build/fuzz`.
"""

import collections
import faulthandler
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "_build" / "fuzz"
OWN = re.compile(rf"{re.escape(str(ROOT))}/(dqt_core|dqt_book|reproductions|tests)/")
MODULES = "fuzz_programs", "fuzz_inputs", "fuzz_files"
MOST_BYTES = 4 * 2**30  # that a process may occupy
SMALLER = 120  # seconds for making a case smaller
FRESH = 300  # cases after which a process is replaced
DEATH = "its process:"  # what a kind of fault begins with where there is no error
CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Target:
    """`draw(rng)` makes a case, a dict; `judge(case, folder)` says what came of it, or raises.

    Parts of a case that are left out have defaults, and of a list each item is a part of its own. The folder
    is empty. `share` is of the time; `seconds` one case may take, with what its target prepares.
    """

    draw: Callable
    judge: Callable
    share: int = 1
    seconds: int = 120


class Child:
    """A process that judges one case after another."""

    def __init__(self, modules):
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(theirs, modules, self.folder))
        self.process.start()
        theirs.close()
        self.pipe.recv()  # it has imported its targets; their mistakes are not findings
        self.name, self.case, self.judged = None, None, []

    def ask(self, name, seconds, seed=None, case=None):
        self.name, self.case, self.since, self.seconds = name, case, time.monotonic(), seconds
        self.pipe.send((name, seed, case))

    def answer(self):
        """(outcome, kind of fault or None, its text), or None while it is busy."""
        try:
            while self.pipe.poll():
                message = self.pipe.recv()
                if isinstance(message, tuple):
                    self.judged.append([self.name, self.case])
                    return message
                self.case = message
        except (EOFError, ConnectionResetError):
            self.process.join()
            told = (self.folder / "stderr").read_text(errors="replace")[-4000:]
            return "fault", f"{self.name}: {DEATH} it ended with {self.process.exitcode}", told
        if time.monotonic() - self.since > self.seconds:
            return "fault", f"{self.name}: {DEATH} more than {self.seconds} s", ""
        if (occupied := memory(self.process.pid)) > MOST_BYTES:
            return "fault", f"{self.name}: {DEATH} more than {MOST_BYTES >> 20} MiB", f"{occupied} bytes"
        return None

    def wait(self):
        while (answer := self.answer()) is None:
            multiprocessing.connection.wait([self.pipe], 0.2)
        return answer

    def stop(self):
        self.pipe.close()  # an idle one ends by itself
        if self.name is None:
            self.process.join(5)
        if self.process.is_alive():
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:  # not yet the head of its own group
                self.process.kill()
        self.process.join()
        shutil.rmtree(self.folder, ignore_errors=True)


def memory(pid):
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def serve(pipe, modules, folder):
    """What a child does: no output but what it says of a case."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    faulthandler.enable()
    sys.stdout.reconfigure(encoding="utf-8", errors="strict")  # as a terminal, which does not take every name
    warnings.simplefilter("error", RuntimeWarning)  # NumPy's, of what overflows
    tempfile.tempdir = str(folder)
    made, case_folder = targets(modules), folder / "case"
    pipe.send("ready")
    while True:
        try:
            name, seed, case = pipe.recv()
        except EOFError:
            return
        shutil.rmtree(case_folder, ignore_errors=True)
        case_folder.mkdir()
        os.truncate(folder / "stderr", 0)
        try:
            if case is None:
                pipe.send(case := json.loads(json.dumps(made[name].draw(random.Random(seed)))))
            answer = made[name].judge(case, case_folder), None, ""
        except BaseException as error:
            answer = "fault", f"{name}: {kind_of(error)}", "".join(traceback.format_exception(error))
        pipe.send(answer)


def targets(modules):
    return {name: one for module in modules for name, one in importlib.import_module(module).TARGETS.items()}


def kind_of(error):
    """The error and the last place of the project that it passed; two faults of one kind count as one."""
    files = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    frames = [frame for frame in files if OWN.match(frame.filename)]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "elsewhere"
    said = f" {str(error).splitlines()[0][:50]}" if isinstance(error, AssertionError) and str(error) else ""
    return f"{type(error).__name__} in {place}{said}"


class Campaign:
    """Counts what comes of the cases, and keeps the findings."""

    def __init__(self, seed, modules=MODULES, out=OUT):
        self.seed, self.modules, self.out = seed, modules, Path(out)
        self.targets = targets(modules)
        self.counts = {name: collections.Counter() for name in self.targets}
        self.spent = dict.fromkeys(self.targets, 0.0)
        self.drawn = collections.Counter()
        self.findings = {}

    def run(self, seconds, workers=1):
        """For some seconds, or until it is interrupted."""
        children = [Child(self.modules) for _ in range(workers)]
        end = time.monotonic() + seconds
        try:
            while True:
                for i, child in enumerate(children):
                    if child.name is not None and (answer := child.answer()):
                        child = children[i] = self.judged(child, answer)
                    if child.name is None and time.monotonic() < end:
                        self.next_case(child)
                busy = [child.pipe for child in children if child.name is not None]
                if not busy:
                    break
                multiprocessing.connection.wait(busy, 0.2)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        finally:
            for child in children:
                child.stop()

    def next_case(self, child):
        name = min(self.targets, key=lambda name: self.spent[name] / self.targets[name].share)
        self.drawn[name] += 1
        self.spent[name] += 0.01  # so that another process takes another target meanwhile
        child.ask(name, self.targets[name].seconds, seed=f"{self.seed} {name} {self.drawn[name]}")

    def judged(self, child, answer):
        """Enter it, and return who judges next: another process after a fault."""
        outcome, kind, text = answer
        self.counts[child.name][outcome] += 1
        self.spent[child.name] += time.monotonic() - child.since
        if kind:
            self.enter(child, kind, text)
        child.name = None if not kind or DEATH not in kind else child.name
        if kind or len(child.judged) >= FRESH:
            child.stop()
            return Child(self.modules)
        return child

    def enter(self, child, kind, text):
        path = self.out / f"{child.name}-{zlib.crc32(kind.encode()):08x}.json"
        self.findings.setdefault(kind, [path, 0])[1] += 1
        if self.findings[kind][1] > 1:
            return
        print(f"found: {kind}: {path}", flush=True)
        found = {"target": child.name, "seed": self.seed, "kind": kind, "text": text, "case": child.case}
        if self.fault(child.name, child.case)[0] == kind:
            found["case"] = self.smallest(child.name, child.case, kind)
        else:  # what other cases left behind in the process has a part in it
            found["after"] = child.judged
        self.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1))

    def fault(self, name, case, after=()):
        """The kind and the text of what is wrong with a case in a new process; None if nothing is."""
        child = Child(self.modules)
        try:
            for earlier in [*after, (name, case)]:
                child.ask(earlier[0], self.targets[earlier[0]].seconds, case=earlier[1])
                answer = child.wait()
            return answer[1:]
        finally:
            child.stop()

    def smallest(self, name, case, kind):
        """One process takes all tries, as long as it lives; so what it finds is tried in a new one."""
        end, child = time.monotonic() + SMALLER, Child(self.modules)
        found, tries = case, smaller(case)
        while time.monotonic() < end and (one := next(tries, None)) is not None:
            child.ask(name, self.targets[name].seconds, case=one)
            _, shown, _ = child.wait()
            if shown == kind:
                found, tries = one, smaller(one)
            if shown and shown.startswith(f"{name}: {DEATH}"):
                child.stop()
                child = Child(self.modules)
        child.stop()
        return found if self.fault(name, found)[0] == kind else case

    def report(self):
        for name, counts in self.counts.items():
            told = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
            print(f"{name:12} {counts.total():7} cases in {self.spent[name]:5.0f} s: {told}")
        for kind, (path, count) in self.findings.items():
            print(f"found {count} times: {kind}: python tests/fuzz.py {path}")
        print(f"SEED={self.seed}: {len(self.findings)} kinds of faults", flush=True)


def smaller(case):
    """The case with one part less: without an entry, or without an item of an entry that is a list."""
    for key, value in case.items():
        yield {k: v for k, v in case.items() if k != key}
        if isinstance(value, list) and len(value) > 1:
            for i in range(len(value)):
                yield {**case, key: value[:i] + value[i + 1 :]}


def again(path, modules=MODULES):
    """A finding's case once more; the kind of fault that it shows now, or None."""
    found = json.loads(Path(path).read_text())
    campaign, after = Campaign(found["seed"], modules), found.get("after", ())
    kind, text = campaign.fault(found["target"], found["case"], after)
    print(text or "nothing is wrong with it any more")
    return kind


def main(minutes="60", seed=None):
    if minutes.endswith(".json"):
        return int(again(minutes) is not None)
    campaign = Campaign(int(seed) if seed else random.randrange(2**32))
    print(f"SEED={campaign.seed}", flush=True)
    campaign.run(60 * float(minutes), int(os.environ.get("WORKERS", 1)))
    campaign.report()
    return int(bool(campaign.findings))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(*sys.argv[1:]))
