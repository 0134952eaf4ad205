"""ResNet-18, ResNet-50 v1.5 and MobileNetV2 as ordinary float torch modules.

Parameter names are torchvision's, so its state dicts load unchanged. Each activation function is a module
of its own: `convert` gives every one its own step.
"""

from torch import Tensor, nn


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = (kernel - 1) // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18).

    Examples
    --------
    >>> import torch
    >>> BasicBlock(8, 8, stride=1, downsample=None)(torch.zeros(1, 8, 4, 4)).shape
    torch.Size([1, 8, 4, 4])
    """

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3), nn.BatchNorm2d(channels)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu2(y + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride: v1.5), 1x1, and a shortcut (ResNet-50).

    Examples
    --------
    >>> import torch
    >>> Bottleneck(32, 8, stride=1, downsample=None)(torch.zeros(1, 32, 4, 4)).shape
    torch.Size([1, 32, 4, 4])
    """

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = _conv(channels, 4 * channels, 1), nn.BatchNorm2d(4 * channels)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu3(y + shortcut)


class ResNet(nn.Module):
    """The residual network of He et al. 2016, with torchvision's parameter names.

    Examples
    --------
    >>> net = ResNet(BasicBlock, (1, 1, 1, 1), classes=10, channels=4, small_images=True)
    >>> [tuple(stage[0].conv1.weight.shape) for stage in (net.layer1, net.layer4)]
    [(4, 4, 3, 3), (32, 16, 3, 3)]
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        classes: int,
        channels: int,
        small_images: bool,
    ) -> None:
        super().__init__()
        self.conv1 = _conv(3, channels, 3) if small_images else _conv(3, channels, 7, 2)
        self.bn1, self.relu = nn.BatchNorm2d(channels), nn.ReLU()
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
        expanded = channels * block.expansion
        self.layer1 = _stage(block, channels, channels, depths[0], stride=1)
        self.layer2 = _stage(block, expanded, 2 * channels, depths[1], stride=2)
        self.layer3 = _stage(block, 2 * expanded, 4 * channels, depths[2], stride=2)
        self.layer4 = _stage(block, 4 * expanded, 8 * channels, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * expanded, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, channels: int, depth: int, stride: int
) -> nn.Sequential:
    outputs = channels * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
    first = block(inputs, channels, stride, downsample)
    return nn.Sequential(first, *(block(outputs, channels, 1, None) for _ in range(depth - 1)))


def _initialise(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18(classes: int = 1000, channels: int = 64, small_images: bool = False) -> ResNet:
    """ResNet-18, 18 weight layers in basic blocks.

    Parameters
    ----------
    classes : int
        Number of logits.
    channels : int
        Channels of the first stage; the later three have 2, 4 and 8 times as many.
    small_images : bool
        True for 32x32 images: a 3x3 stem with stride 1 and no max-pool. False for 224x224.

    Returns
    -------
    ResNet
        Takes float32 images (N, 3, H, W), normalised; returns float32 logits (N, classes).

    Examples
    --------
    >>> import torch
    >>> resnet18(classes=10, channels=8, small_images=True)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, channels, small_images)


def resnet50(classes: int = 1000, channels: int = 64) -> ResNet:
    """ResNet-50 v1.5 for 224x224 images (the stride sits in the 3x3 convolution).

    Parameters
    ----------
    classes : int
        Number of logits.
    channels : int
        Inner channels of the first stage.

    Returns
    -------
    ResNet
        Takes float32 images (N, 3, H, W), normalised; returns float32 logits (N, classes).

    Examples
    --------
    >>> sum(p.numel() for p in resnet50().parameters())
    25557032
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, channels, small_images=False)


def _conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 with no activation function (MobileNetV2).

    Examples
    --------
    >>> import torch
    >>> block = InvertedResidual(8, 8, stride=1, expansion=6)
    >>> block(torch.zeros(1, 8, 4, 4)).shape, block.has_shortcut
    (torch.Size([1, 8, 4, 4]), True)
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [] if expansion == 1 else [_conv_bn_relu6(inputs, hidden, 1)]
        layers += [_conv_bn_relu6(hidden, hidden, 3, stride, hidden)]
        self.conv = nn.Sequential(*layers, _conv(hidden, outputs, 1), nn.BatchNorm2d(outputs))
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 of Sandler et al. 2018, with torchvision's parameter names.

    Examples
    --------
    >>> len(MobileNetV2(classes=10).features)  # the stem, 17 inverted residuals, the last 1x1
    19
    """

    # expansion, channels, depth, stride of each stage: table 2 of the MobileNetV2 paper
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, classes: int) -> None:
        super().__init__()
        features: list[nn.Module] = [_conv_bn_relu6(3, 32, 3, 2)]
        inputs = 32
        for expansion, channels, depth, stride in self.stages:
            for i in range(depth):
                features.append(InvertedResidual(inputs, channels, stride if i == 0 else 1, expansion))
                inputs = channels
        self.features = nn.Sequential(*features, _conv_bn_relu6(inputs, 1280, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def mobilenet_v2(classes: int = 1000) -> MobileNetV2:
    """MobileNetV2 (width 1.0) for 224x224 images.

    Parameters
    ----------
    classes : int
        Number of logits.

    Returns
    -------
    MobileNetV2
        Takes float32 images (N, 3, H, W), normalised; returns float32 logits (N, classes).

    Examples
    --------
    >>> sum(p.numel() for p in mobilenet_v2().parameters())
    3504872
    """
    return MobileNetV2(classes)


def pad_after(net: nn.Module) -> None:
    """Make 3x3 convolutions of stride 2 pad one row and column after the image, as Keras does, in place.

    Torch pads before and after; on images of even size its windows then sit one pixel further up and left. A
    4x4 kernel whose first row and column are 0, with torch's padding, has Keras's windows, and stays a
    convolution that every part of this package knows. Its zeros are counted as multiply-accumulates.

    Parameters
    ----------
    net : Module
        With its weights loaded.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1, bias=False))
    >>> x = torch.randn(1, 1, 8, 8)
    >>> expected = nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 1)), net[0].weight, stride=2)
    >>> pad_after(net)
    >>> torch.allclose(net(x), expected, atol=1e-6)
    True
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.stride == (2, 2):
            module.weight = nn.Parameter(nn.functional.pad(module.weight.detach(), (1, 0, 1, 0)))
            module.kernel_size = (4, 4)
