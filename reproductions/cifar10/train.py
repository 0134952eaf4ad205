"""Train a ResNet-18 for 32x32 images: float, then nested codes with the controller; lower it to integers.

The notebook's profile "train" calls `train_resnet18`; on a machine without Jupyter run this file.
"""

import argparse
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save

from dqt_core import convert, cost, data, lower, models, train
from dqt_core.program import Program
from dqt_core.program.storage import write_whole
from dqt_core.training.objective import Objective


@dataclass
class Trained:
    """A float network, its codes cut without training, and its codes trained for their widths."""

    float_net: torch.nn.Module
    cut: Program
    program: Program
    digests: dict[str, str]
    description: str


def train_resnet18(
    images: data.Dataset,
    out: Path,
    width_multiplier: float = 0.25,
    epochs: float = 24,
    nested_epochs: float | None = None,
    seed: int = 0,
) -> Trained:
    """Train, lower, and write the three networks into `out`, each with its digest in its name.

    Without `nested_epochs`, the nested codes train for a tenth of `epochs`.
    A run that was interrupted goes on from its last checkpoint under ``out/<data set>/``.
    """
    channels, folder = round(64 * width_multiplier), out / images.name
    nested_epochs = epochs / 10 if nested_epochs is None else nested_epochs
    flip = images.name != "embedded"  # a mirrored digit is another sign
    torch.manual_seed(seed)
    float_net = models.resnet18(len(images.classes), channels, small_images=True)
    recipe = train.Recipe(epochs=epochs, lr=0.2, seed=seed, flip=flip)
    train.fit(float_net, images, recipe, out=folder / "float")
    digest = save_float(float_net, out, f"resnet18_{images.name}_float")

    torch.manual_seed(seed)
    nested = convert(float_net, images.train_images[:512], images.mean, images.std)
    cut = lower(nested, f"resnet18_{images.name}_cut")
    four_bits = float(cost.bitops(cut, 4)[0])
    objective = Objective(controller_from=0.6, beta=1.0, target_bitops=four_bits)
    recipe = train.Recipe(epochs=nested_epochs, lr=0.02, seed=seed, flip=flip)
    train.fit(nested, images, recipe, objective, out=folder / "nested", checkpoint_every=100)
    train.recalibrate(nested, images)
    program = lower(nested, f"resnet18_{images.name}")

    for lowered in (cut, program):
        print(f"program: {lowered.save(out).name}")
    digests = {"float": digest, "cut": cut.digest, "trained": program.digest}
    description = (
        f"{epochs:g} float epochs, then {nested_epochs:g} epochs of nested codes, the controller "
        f"from {objective.controller_from:.0%} on with 4-bit BitOPs as its target, batch-norm statistics "
        f"of each width re-estimated at the end; seed {seed}"
    )
    return Trained(float_net, cut, program, digests, description)


def save_float(net: torch.nn.Module, folder: Path, name: str) -> str:
    """Write a float network's state; return the sha256 of the file, whose first digits its name holds."""
    blob = save({key: tensor.contiguous() for key, tensor in net.state_dict().items()})
    digest = hashlib.sha256(blob).hexdigest()
    path = folder / f"{name}-{digest[:12]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, blob)
    print(f"float network: {path.name}")
    return digest


def load_float(path: Path, classes: int) -> torch.nn.Module:
    """The float network of a file written by `save_float`, in evaluation mode."""
    blob = path.read_bytes()
    named, digest = re.search(r"-([0-9a-f]{12})$", path.stem), hashlib.sha256(blob).hexdigest()
    if named and named[1] != digest[:12]:
        raise ValueError(f"{path} is damaged: its digest begins with {digest[:12]}; get the file again")
    state = load(blob)
    net = models.resnet18(classes, len(state["conv1.weight"]), small_images=True)
    net.load_state_dict(state)
    return net.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="auto", choices=["auto", "cifar10", "embedded"])
    parser.add_argument("--out", type=Path, default=Path("runs/resnet18_cifar"))
    parser.add_argument("--width-multiplier", type=float, default=0.25)
    parser.add_argument("--epochs", type=float, default=24)
    parser.add_argument("--nested-epochs", type=float, help="a tenth of --epochs if not given")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    train_resnet18(data.load(options.pop("dataset")), **options)
