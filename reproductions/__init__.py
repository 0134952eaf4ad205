"""Runs that the records come from: digits, CIFAR-10, ImageNet, exported files. The notebooks show what they recorded."""
