# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # ResNet-50 and MobileNetV2 on ImageNet
#
# A network that somebody else trained, made into an integer program without training: steps and batch-norm tables
# come from a few dozen images, and one stored 8-bit master then serves every width. The tables below are drawn from
# files in `reproductions/results/resnet50_imagenet/`. They hold what was measured on a *sample* of the validation
# images, with its size and its interval; what was not attempted stands there too, with the command that would run
# it.
#
# Without ImageNet the live part runs a small network with random weights on two photographs. With it, run
#
#     papermill reproductions/resnet50_imagenet.ipynb out.ipynb -p imagenet_root DIR -p weights torchvision
#
# where `DIR` holds `val/<WordNet id>/` and `train/<WordNet id>/`, as ImageNet is usually unpacked. The second name is
# where papermill keeps the notebook with its outputs; without it there is none. The record of the run is written to
# the folder `out` in any case. `-p profile train` trains nested codes from the float network; on many GPUs
# `reproductions.imagenet.train` does the same.

# %% tags=["parameters"]
profile = "auto"  # "evaluate", "train", "embedded", or "auto": evaluate where imagenet_root is given
imagenet_root = ""  # holds val/<WordNet id>/*.JPEG and train/...
network = "resnet50"  # or "mobilenet_v2"
weights = "torchvision"  # downloaded, or a file: .npz, .safetensors, .pth
pads_after = False  # True for MobileNetV2 weights that came from Keras
is_sample = False  # True: classes may be missing; synsets.txt numbers them
skip_unreadable = False  # True: damaged images are left out and named; False: they stop the run
calibration_images = 64
limit = None  # validation images, drawn at random; None: all
epochs = 90  # of the profile "train"
batch_size = 256  # of "train"; batch norm sees 32 images at a time
trained_widths = [2, 3, 4, 6, 8]  # of "train"
packed = ""  # training images in shards, made by reproductions.imagenet.pack; "": from imagenet_root
out = "runs/resnet50_imagenet"  # in the checkout, or an absolute path; an interrupted run goes on from here

# %%
import json
import warnings

import matplotlib.pyplot as plt

from dqt_book import parameters, show
from dqt_book.places import ROOT
from dqt_book.records import imagenet_plan
from dqt_book.records.imagenet import (
    band_rows,
    chosen,
    not_attempted_rows,
    published_rows,
    rows_of,
    short_rows,
    training_facts,
)
from dqt_core import results, statistics

RECORDS = ROOT / "reproductions" / "results" / "resnet50_imagenet"

show.style()
warnings.filterwarnings("ignore", "IProgress")  # a progress bar in text will do

parameters.check(
    globals(),
    profile=parameters.choice("auto", "evaluate", "train", "embedded"),
    imagenet_root=parameters.place() if profile in ("evaluate", "train") else parameters.place(""),
    network=parameters.choice("resnet50", "mobilenet_v2"),
    weights=parameters.place("torchvision"),
    pads_after=parameters.FLAG,
    is_sample=parameters.FLAG,
    skip_unreadable=parameters.FLAG,
    calibration_images=parameters.whole(1),
    limit=parameters.optional(parameters.whole(1)),
    epochs=parameters.POSITIVE,
    batch_size=parameters.whole(1),
    trained_widths=parameters.WIDTHS,
    packed=parameters.place(""),
    out=parameters.TEXT,
)
profile = ("evaluate" if imagenet_root else "embedded") if profile == "auto" else profile
folder = parameters.output(ROOT / (f"{out}_trained" if profile == "train" else out))

# %% [markdown]
# ## What was recorded
#
# Every integer row is the whole program on integers alone: bytes in, 64-bit logits out. "Float" is the network as it
# was given, in torch, on the same images. The difference is paired: it is counted on the images that one of the two
# classifies correctly and the other does not.

# %% tags=["hide-input"]
from IPython.display import Markdown, display

records = {path.stem: results.read(path) for path in sorted(RECORDS.glob("*.json"))}
HEAD = ["widths", "top-1", "95 % interval", "minus float, points", "mean width", "G BitOPs"]


def shown(record):
    data, origin = record["dataset"], record["provenance"]
    print(f"{record['title']}: {data['images']:,} images of {data['classes']} classes")
    print(f"weights: {record['network']['weights']}")
    print(f"commit {origin['commit'][:12]}, {origin['date']}, {origin['hardware']['cpu']}")
    counts = record["calibration"]["images"]
    print(
        f"training images: {counts['steps and tables']} for steps and tables, {counts['choice']} for choices"
    )
    print(f"peak memory, lowering and evaluation: {record['peak_bytes'] / 1e9:.1f} GB")
    display(show.Table(HEAD, rows_of(record)))


for name, record in records.items():
    display(Markdown(f"**{name}**"))
    shown(record)

# %% [markdown]
# The sample seems easier than the whole validation set: networks score several points above their published accuracy
# on it. So compare rows of one table with each other, and no row with a published one.


# %% mystnb={"image": {"alt": "Top-1 accuracy with its 95 % interval against BitOPs for each recorded row, one panel a network; a dotted line is the float network.", "classes": "dark-light"}} tags=["nbval-ignore-output", "hide-input"]
def plot(records):
    _, axes = plt.subplots(1, len(records), figsize=(8, 3.4), squeeze=False)
    for axis, (name, record) in zip(axes[0], records.items(), strict=True):
        for kind, marker in (("", "o"), ("mixed", "s")):
            rows = [
                r for r in record["rows"] if "bitops" in r and r["widths"].startswith("mixed") == bool(kind)
            ]
            x = [row["bitops"] / 1e9 for row in rows]
            y = [100 * row["correct"] / row["images"] for row in rows]
            spans = [statistics.interval(row["correct"], row["images"]) for row in rows]
            low = [v - 100 * span[0] for v, span in zip(y, spans, strict=True)]
            high = [100 * span[1] - v for v, span in zip(y, spans, strict=True)]
            axis.errorbar(x, y, (low, high), ls="", marker=marker, label=kind or "one width", capsize=3)
        floating = record["rows"][0]
        level = 100 * floating["correct"] / floating["images"]
        axis.axhline(level, ls=":", marker="", color=show.INK, label="float")
        axis.set(title=name, xlabel="G BitOPs an image", ylabel="top-1 on the sample, %", ylim=(0, 100))
        axis.legend(fontsize=9)
    plt.show()


if records:
    plot(records)

# %% [markdown]
# ## The bands
#
# What this package set out to reach without training (`reproductions/expected/resnet50_imagenet.json`).

# %% tags=["hide-input"]
expected = json.loads((ROOT / "reproductions/expected/resnet50_imagenet.json").read_text())
show.Table(["difference", "measured", "band", "status"], band_rows(records, expected["bands"]))

# %% [markdown]
# And the time. Images a second of the integer program at 8 bits and of the same network in floats, batch 16, in one
# run of `make bench`; the page *Speed on a CPU* of the book has the rest.

# %% tags=["hide-input"]
for path in sorted((ROOT / "reproductions/results/cpu").glob("*.json"), reverse=True):
    speed = json.loads(path.read_text())
    rows = [
        [
            row["peer"],
            f"{16e3 / row['ours_ms']:.0f}",
            f"{16e3 / row['peer_ms']:.0f}",
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
        ]
        for row in speed["rows"]
        if row["group"] == "resnet50 batch 16" and row["what"] == "dqt_core"
    ]
    print(f"{speed['threads']} thread(s), {speed['provenance']['hardware']['cpu']}")
    display(show.Table(["against", "integers, images/s", "other, images/s", "ratio (quartiles)"], rows))

# %% [markdown]
# ## What was tried in calibration
#
# Each line says whether the weights' master codes were chosen so that no width rounds them twice, the rule of the
# steps of activations, and whether the batch-norm tables were corrected for what rounding does to their inputs. The
# figure is the divergence of the classes' probabilities from the float network's, in nats, on training
# images that set no step; the least was taken. No validation image was looked at for this choice.

# %% tags=["hide-input"]
for name, record in records.items():
    widths = sorted(record["calibration"]["tried"][0]["divergence"], key=int)
    rows = [
        [tried["weights"], tried["rule"], tried["tables"], *(f"{tried['divergence'][w]:.3g}" for w in widths)]
        for tried in record["calibration"]["tried"]
    ]
    print(f"{name}, chosen: {chosen(record)}")
    display(show.Table(["weights", "steps", "tables", *(f"{w} bits" for w in widths)], rows))

# %% [markdown]
# ## A short training
#
# Nested codes trained for a few minutes on one CPU thread, from the same float network, on one image a class, and
# evaluated by integers on the same validation images. It shows that the training path runs on real images from end
# to end, and what it changes against the rows without training; it says nothing about what a full training reaches.
# "Cannot be told apart" means that the paired difference's interval holds 0: no improvement is shown.

# %% tags=["hide-input"]
SHORT = ROOT / "reproductions" / "results" / "imagenet_short"
short = {path.stem: results.read(path) for path in sorted(SHORT.glob("*.json"))}
head = [
    "widths",
    "post-training",
    "trained",
    "95 % interval",
    "trained minus float",
    "trained minus post-training",
    "trained is",
]
for name, record in short.items():
    display(Markdown(f"**{name}**, {record['dataset']['images']:,} images"))
    untrained = results.read(SHORT / "untrained" / f"{name}.json")  # the same images
    display(show.Table(head, short_rows(record, untrained)))
    display(show.Table(["of this training", ""], training_facts(record)))

# %% [markdown]
# ## What a full training takes
#
# Decoding can be what a training on ImageNet waits for. Images a second of random crops, from class folders and from shards
# that `reproductions.imagenet.pack` makes, with so many worker processes; "given" are the training images at hand, cut to
# 256 x 256 before, the photographs are as large as ImageNet's own. The files were in memory, where shards show no
# clear gain: they are for shared disks, of which none was at hand. With other work on the machine the images a second
# say little, and the CPU time of an image, without workers, says more.

# %% tags=["hide-input"]
cost_record = results.read(imagenet_plan.RECORD)
origin = cost_record["provenance"]
print(
    f"commit {origin['commit'][:12]}, {origin['date']}, {origin['hardware']['cpu']}, "
    f"{origin['hardware']['cores']} cores, load {cost_record['load']:.0f} by other work"
)
head = ["images", "KB each", "stored as", "workers", "images/s", "least to most", "CPU ms each"]
show.Table(head, imagenet_plan.reading_rows(cost_record))

# %% [markdown]
# From it, a plan. Two figures are measured on a CPU: the images that a core decodes in a second, and how many float steps
# a step of nested codes costs, all widths and the float teacher included. **No figure of a GPU is measured: nothing here
# has been run on one.** All else is assumed: the figures printed below, for which
# `python -m dqt_book.records.imagenet_plan` takes yours; that 64 GPUs lose no larger share than 8 and train as well with
# their large batch; that workers decode in proportion to their number, and that disk and network keep up.

# %% tags=["hide-input"]
known = imagenet_plan.measured(cost_record, "2 3 4 6 8")
assumed = imagenet_plan.Assumed()
print(
    f"measured: a core decodes {known.decoded_per_worker:.0f} images/s; a step costs {known.step_ratio:.1f} "
    f"float steps; {known.parameters / 1e6:.1f} M parameters"
)
print(
    f"assumed: {assumed.gpu_images_per_second:g} images/s of float training on one GPU, of which "
    f"{assumed.scaling:.0%} remain on several; {assumed.workers} workers a GPU; {assumed.price:g} a GPU hour;\n"
    f"{assumed.epochs} epochs of {assumed.images:,} images of {assumed.bytes_per_image / 1e3:.0f} KB; "
    f"{assumed.batch} a GPU in each step, {64 * assumed.batch:,} on 64; gradients of 4 bytes, sent in a ring"
)
show.Table(imagenet_plan.HEAD, imagenet_plan.table(known, assumed))

# %% [markdown]
# ## Published rows
#
# Others' networks on the whole validation set, as their authors printed them; nearly all of them were trained for
# their width or widths. Compare each row with its own float column.

# %% tags=["hide-input"]
published = json.loads((ROOT / "reproductions/expected/published.json").read_text())["rows"]
head = ["method", "network", "float", "2", "3", "4", "6", "8", "mixed", "source"]
show.Table(head, published_rows(published, ("ResNet-50", "MobileNetV2")))

# %% [markdown]
# ## Not attempted

# %% tags=["hide-input"]
show.Table(["row", "why", "what would run it"], not_attempted_rows(expected["not_attempted"]))

# %% [markdown]
# ## The live run
#
# With ImageNet: the float network, its conversion and every row, as above. Without: a narrow ResNet-50 with random
# weights looks at two photographs. Its classes mean nothing and no accuracy is claimed; that every backend gives the
# same bits, and what each width costs, does not depend on the weights.

# %% tags=["nbval-ignore-output"]
if profile != "embedded":
    arguments = ["--imagenet-root", imagenet_root, "--network", network, "--weights", weights]
    arguments += ["--out", str(folder)]
    arguments += ["--calibration", str(calibration_images)]
    arguments += ["--limit", str(limit)] * (limit is not None) + ["--sample"] * is_sample
    arguments += ["--pads-after"] * pads_after + ["--skip-unreadable"] * skip_unreadable
if profile == "evaluate":
    from reproductions.imagenet import evaluate as imagenet_run

    path = imagenet_run.run(imagenet_run.options(arguments))
    shown(results.read(path))

# %% tags=["nbval-ignore-output"]
if profile == "train":
    from reproductions.imagenet import train as train_imagenet

    arguments += ["--epochs", str(epochs), "--widths", *map(str, trained_widths)] + [
        "--packed",
        packed,
    ] * bool(packed)
    arguments += ["--batch-size", str(batch_size), "--microbatch", str(min(32, batch_size))]
    arguments += ["--restore-statistics"]  # changes nothing where they were not folded in
    path = train_imagenet.run(train_imagenet.options(arguments))
    live = results.read(path)
    display(show.Table(["of this training", ""], training_facts(live)))
    for row in live["rows"]:
        print(
            f"{row['widths']}: {row['correct']} of {row['images']}, {row['bitops'] / 1e9:.2f} G BitOPs each"
        )

# %%
if profile == "embedded":
    import numpy as np
    import torch

    from dqt_core import convert, cost, lower, models
    from dqt_core.data import imagenet
    from dqt_core.training import calibration

    torch.manual_seed(0)
    photographs = imagenet.photographs()
    small = models.resnet50(channels=4) if network == "resnet50" else models.mobilenet_v2()
    nested = convert(small.eval(), photographs, imagenet.MEAN, imagenet.STD, widths=(4, 8), controller=False)
    calibration.round_once(nested)
    calibration.correct_norms(nested, [photographs])
    program = lower(nested, f"{network}_random")
    kinds = sorted({type(op).__name__ for op in program.ops})
    print(f"{len(program.ops)} integer operations of {len(kinds)} kinds: {', '.join(kinds)}")

# %% tags=["hide-input"]
if profile == "embedded":
    rows = []
    for width in (8, 4):
        fast, exact = (program.run(photographs, width, backend) for backend in ("torch", "numpy"))
        assert np.array_equal(fast.logits, exact.logits), "the backends differ"
        rows.append(
            [
                width,
                f"{cost.bitops(program, width)[0] / 1e9:.3f}",
                f"{cost.transitions(program, width)[0] / 1e6:.3f}",
                f"{cost.weight_bytes(program, width)[0] / 1e6:.3f}",
            ]
        )
    print("the reference and the fast backend agree on every logit of both photographs")
    costs = show.Table(["width", "G BitOPs", "M transitions", "MB of weights read"], rows)
    display(costs)

# %% tags=["nbval-ignore-output"]
if profile == "embedded":
    title = f"{network} with random weights: what a photograph costs"
    parameters.say("page", show.page(folder / f"{network}_random.html", title, costs))
else:
    parameters.say("record", path)

# %% [markdown]
# ## What this shows, and what it does not
#
# - The path from a pretrained network to an integer program, without training, on real images and weights; each row
#   with its interval over the sample.
# - The weights of the recorded ResNet-50 had been compressed by product quantization before. They may not be shipped,
#   nor the programs lowered from them: their digests stand in the record, and the command above makes them again.
# - The short training saw one image a class; its table says whether it improved on the rows without. Nothing here
#   speaks of what low-bit networks reach when they are trained on all of ImageNet: those rows are listed as not
#   attempted, with the command that trains them.
# - Several processes were tried with a tiny network on CPUs, where they train the same weights as one. No part of this
#   has been run on a GPU.
