"""Runs that the records come from: CIFAR-10, ImageNet, exported files. The notebooks show what they recorded."""
