"""Pack ImageNet's training images into shards for long trainings.

    python -m reproductions.imagenet.pack --imagenet-root DIR --out SHARDS --workers 8

The images stay as they are, in tar files in WebDataset's format; what cannot be decoded is left out and named.
A shared disk then opens one file for a thousand images. `reproductions.imagenet.train --packed SHARDS` reads them.
"""

import argparse

from dqt_core.data import imagenet, streaming


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imagenet-root", required=True, help="holds train/<WordNet id>/<image>")
    parser.add_argument("--split", default="train", choices=["train", "val"])
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--per-shard", type=int, default=1000, help="images in a tar file")
    parser.add_argument("--workers", type=int, default=4, help="processes that decode each image once")
    parser.add_argument("--sample", action="store_true", help="classes may be missing")
    return parser.parse_args(arguments)


def run(chosen: argparse.Namespace) -> streaming.Packed:
    files = imagenet.open_split(chosen.imagenet_root, chosen.split, is_sample=chosen.sample)
    packed = streaming.pack(files, chosen.out, chosen.per_shard, workers=chosen.workers)
    for name, reason in packed.left_out.items():
        print(f"left out: {name}: {reason}")
    print(f"{len(packed)} images of {len(files)} in {packed.folder}")
    return packed


if __name__ == "__main__":
    run(options())
