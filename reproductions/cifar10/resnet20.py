"""ResNet-20 with published weights made integers without training, and its accuracy on CIFAR-10 at each width.

    python -m reproductions.cifar10.resnet20 --weights cifar_resnet20.npz

DQT_DATA names the images. The weights are those of akamaster/pytorch_resnet_cifar10, normalised with ImageNet's mean and
deviation; neither they nor what is lowered from them is in this repository.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import dqt_core
from dqt_book.networks import RESNET20, CifarResNet
from dqt_core import data, results
from dqt_core.training.inputs import normalized

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTHS, IMAGES, BATCH = (4, 5, 6, 8), 500, 250
PUBLISHED = 9173  # of 10,000, by the weights' authors


def load(weights):
    """The float network."""
    net = CifarResNet(20)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in np.load(weights).items()})
    return net.eval()


@torch.no_grad()
def float_row(net, dataset):
    start, classes = time.perf_counter(), []
    for i in range(0, len(dataset.test_images), BATCH):
        classes.append(net(normalized(dataset.test_images[i : i + BATCH], MEAN, STD)).argmax(1))
    right = torch.cat(classes).numpy() == dataset.test_labels
    row = {
        "widths": "float",
        "correct": int(right.sum()),
        "images": len(right),
        "hits": results.packed(right),
    }
    return row | {"logits": None, "first": {}, "seconds": round(time.perf_counter() - start, 2)}


def record(weights):
    dataset, net = data.load("cifar10"), load(weights)
    images = dataset.train_images[:IMAGES]
    program, report = dqt_core.quantize(net, images, MEAN, STD, WIDTHS, name="resnet20_cifar")
    print(report)
    rows = [float_row(net, dataset), *(results.evaluate(program, dataset, width) for width in WIDTHS[::-1])]
    return {
        "name": "resnet20_cifar",
        "dataset": {"name": "cifar10", "split": "test", "limit": None, "checksums": dataset.checksums},
        "network": {"name": "CifarResNet(20)", "weights": "akamaster/pytorch_resnet_cifar10, ResNet-20"},
        "published": PUBLISHED,
        "calibration": {"images": IMAGES, **report.calibration},
        "programs": {"uniform": program.digest},
        "rows": rows,
        "provenance": results.provenance(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, type=Path)
    written = results.write(record(parser.parse_args().weights), RESNET20)
    for row in results.read(written)["rows"]:
        print(f"{row['widths']:>6}: {row['correct']} of {row['images']}")


if __name__ == "__main__":
    main()
