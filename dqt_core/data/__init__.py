"""Images and labels.

============ ==========================================================================
`datasets`   whole in memory, verified by checksum: CIFAR-10, and digits that need no file
`imagenet`   ImageNet as it is usually unpacked, read file by file
`streaming`  packed for a shared disk, and cut at random for training; needs torch
============ ==========================================================================

What `datasets` offers is here too: ``data.load("cifar10")``.
"""

from dqt_core.data.datasets import (
    CIFAR10_CLASSES,
    CIFAR10_MEAN,
    CIFAR10_STD,
    DOWNLOAD,
    ENVIRONMENT_VARIABLE,
    RECORDED_COPY,
    DataError,
    Dataset,
    Images,
    Labels,
    cifar10,
    embedded,
    load,
    normalization_table,
)

__all__ = [
    "CIFAR10_CLASSES",
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "DOWNLOAD",
    "ENVIRONMENT_VARIABLE",
    "RECORDED_COPY",
    "DataError",
    "Dataset",
    "Images",
    "Labels",
    "cifar10",
    "embedded",
    "load",
    "normalization_table",
]
