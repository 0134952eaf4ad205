"""ResNet-18 on CIFAR-10: training, and the comparison with other methods."""
