"""ResNet-50 and MobileNetV2 on ImageNet: without training, layer by layer, trained, and what that takes."""
