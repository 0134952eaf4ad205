"""How much of a second look's gain can be foreseen, and from where in the network?

A cascade looks again where the answer at 2 bits has a small margin. A decision that is to be made earlier has less
to go by. Here a small network learns, from the codes at one place of the 2-bit pass, what 4 bits would gain on an
image; then the same share of the images as a cascade's goes to 4 bits, those of the largest predicted gain.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dqt_core import lower, results, train
from dqt_core.backends import stepwise, torch_cpu
from dqt_core.evaluation.cascade import margins
from dqt_core.program import IMAGE, Program
from reproductions.cifar10.run import Run

NARROW, WIDE, SHARE = 2, 4, 0.3
LEARNT_FROM = 20_000  # training images, augmented
EPOCHS, HIDDEN = 20, 64
PLACES = {
    "the stem": "relu_codes",
    **{f"stage {i}": f"layer{i}_1_relu2_codes" for i in (1, 2, 3, 4)},
}


def foresight(run: Run) -> list[results.Record]:
    """A row for each place, with the margin's and the control's."""
    program = lower(run.static())
    run.programs["trained"] = program.digest
    torch.manual_seed(run.settings.seed)
    images = run.images
    known = min(LEARNT_FROM, len(images.train_images))
    seen = train.augment(torch.from_numpy(images.train_images[-known:]), run.flip).numpy()
    labels = torch.from_numpy(images.train_labels[-known:])
    gains = _losses(program, seen, labels, NARROW) - _losses(program, seen, labels, WIDE)
    limit = run.settings.limit
    tested, expected = images.test_images[:limit], images.test_labels[:limit]
    narrow, wide = (program.run(tested, width) for width in (NARROW, WIDE))
    right = np.stack([narrow.classes == expected, wide.classes == expected])
    scores: dict[str, NDArray[Any]] = {
        "the margin": -margins(narrow.logits).astype(np.float64),
        "nothing (dealt)": np.random.default_rng(run.settings.seed).random(len(tested)),
        "the labels (no decision can)": right[1].astype(np.float64) - right[0],
    }
    learnt, unseen = means(program, seen), means(program, tested)
    for place in PLACES:
        scores[place] = predicted(learnt[place], gains, unseen[place])
    run.training |= {"learnt from": known, "epochs of a prediction": EPOCHS, "share": SHARE}
    return [_row(f"seen from {place}", score, right) for place, score in scores.items()]


def _row(label: str, score: NDArray[Any], right: NDArray[np.bool_]) -> results.Record:
    again = np.zeros(len(score), bool)
    again[np.argsort(-score, kind="stable")[: int(SHARE * len(score))]] = True
    hits = np.where(again, right[1], right[0])
    return {  # the share is equal, not the cost: a decision made early saves what comes before it
        "widths": label,
        "correct": int(hits.sum()),
        "images": len(hits),
        "hits": results.packed(hits),
        "bitops": None,
        "mean_width": None,
        "logits": None,
        "kind": "experiment",
    }


def _losses(program: Program, images: NDArray[np.uint8], labels: Tensor, width: int) -> Tensor:
    """Cross-entropy of every image, its logits in units of their own deviation over four."""
    logits = torch.from_numpy(program.run(images, width).logits).double()
    return functional.cross_entropy(4 * logits / logits.std(), labels.long(), reduction="none").float()


def means(program: Program, images: NDArray[np.uint8], batch: int = 250) -> dict[str, Tensor]:
    """For each place, the mean of every channel's codes (N, C) in the pass at 2 bits: what a controller reads."""
    parts: dict[str, list[Tensor]] = {place: [] for place in PLACES}
    for start in range(0, len(images), batch):
        for place, codes in _passing(program, images[start : start + batch]):
            parts[place].append(codes.float().mean((1, 2)))
    return {place: torch.cat(rows) for place, rows in parts.items()}


def _passing(program: Program, images: NDArray[np.uint8]) -> Iterator[tuple[str, Tensor]]:
    backend = torch_cpu.Backend(program)
    widths = [width for width, _ in program.choices]
    choices = np.full((len(images), len(program.layers)), widths.index(NARROW))
    values = {IMAGE: backend.upload(images)}
    names = {value: place for place, value in PLACES.items()}
    for op, made in stepwise.walk(backend, program.ops, values, choices, len(widths)):
        if (place := names.get(getattr(op, "out", ""))) is not None:
            yield place, made


def predicted(learnt: Tensor, gains: Tensor, unseen: Tensor) -> NDArray[np.float64]:
    """The gain of a second look on unseen images, by least squares on others'."""
    centre, spread = learnt.mean(0), learnt.std(0) + 1e-6
    learnt, unseen = (learnt - centre) / spread, (unseen - centre) / spread
    gains = gains.clamp(-4, 4)
    net = nn.Sequential(nn.Linear(learnt.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)
    for _ in range(EPOCHS):
        for some in torch.randperm(len(learnt)).split(256):
            loss = functional.mse_loss(net(learnt[some]).squeeze(1), gains[some] - gains.mean())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return net(unseen).squeeze(1).double().numpy()
