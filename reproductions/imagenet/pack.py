"""Pack ImageNet's training images into shards for long trainings.

    python -m reproductions.imagenet.pack --imagenet-root DIR --out SHARDS --workers 8
    python -m reproductions.imagenet.pack --verify SHARDS

The images stay as they are, in tar files in WebDataset's format; what cannot be decoded is left out and named.
A shared disk then opens one file for a thousand images. `reproductions.imagenet.train --packed SHARDS` reads them, and
compares each image with its digest; ``--verify`` compares whole shards, after a copy.
"""

import argparse
import sys

from dqt_core.data import imagenet, packing, shards


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imagenet-root", help="holds train/<WordNet id>/<image>")
    parser.add_argument("--split", default="train", choices=["train", "val"])
    parser.add_argument("--out", help="a new folder")
    parser.add_argument("--per-shard", type=int, default=1000, help="images in a tar file")
    parser.add_argument("--workers", type=int, default=4, help="processes that decode each image once")
    parser.add_argument("--sample", action="store_true", help="classes may be missing")
    parser.add_argument("--verify", metavar="SHARDS", help="read shards that were made, and compare")
    chosen = parser.parse_args(arguments)
    if not chosen.verify and not (chosen.imagenet_root and chosen.out):
        parser.error("give --imagenet-root and --out to pack, or --verify to compare shards")
    return chosen


def run(chosen: argparse.Namespace) -> shards.Packed:
    files = imagenet.open_split(chosen.imagenet_root, chosen.split, is_sample=chosen.sample)
    packed = packing.pack(files, chosen.out, chosen.per_shard, workers=chosen.workers)
    for name, reason in packed.left_out.items():
        print(f"left out: {name}: {reason}")
    print(f"{len(packed)} images of {len(files)} in {packed.folder}")
    return packed


def verify(folder: str) -> int:
    """Exit status 1 where a shard is not the one that was written; each is named."""
    packed = shards.open_packed(folder)
    damaged = shards.verify(packed)
    for name in damaged:
        print(f"{packed.folder / name} is not as it was written; copy it again")
    print(f"{len(packed.shards) - len(damaged)} of {len(packed.shards)} shards are as they were written")
    return 1 if damaged else 0


if __name__ == "__main__":
    chosen = options()
    if chosen.verify:
        sys.exit(verify(chosen.verify))
    run(chosen)
