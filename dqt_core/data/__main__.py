"""Download a data set: ``python -m dqt_core.data cifar10 DIR``."""

import argparse
import sys

from dqt_core.data.datasets import download_cifar10

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m dqt_core.data", description="Download a data set through torchvision."
    )
    parser.add_argument("name", choices=["cifar10"])
    parser.add_argument("folder")
    try:
        download_cifar10(parser.parse_args().folder)
    except (ImportError, OSError) as error:
        sys.exit(str(error))
