"""ResNet-50 and MobileNetV2 on ImageNet: without training, with it, and what training takes."""
