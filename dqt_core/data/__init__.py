"""Images and labels.

============ ==========================================================================
`datasets`   whole in memory, verified by checksum: CIFAR-10, and digits that need no file
`decoding`   any image file as a picture, or why it is none
`holding`    a folder that one process at a time works in
`imagenet`   ImageNet as it is usually unpacked, read file by file
`packing`    made into a few large files for a shared disk
`shards`     these files, read by position
`streaming`  cut at random for training; needs torch
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
