"""Float networks as courses and papers write them: what `convert` is tried on, and a page's list of them.

Each is small, with random weights: the structure is the published one, a fraction of the channels does. What
is written here by hand is what torchvision does not have, in the form in which it was published.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from dqt_book.places import ROOT
from dqt_book.show import Table
from dqt_core import results
from dqt_core.data._torchvision import import_torchvision

RESNET20 = ROOT / "reproductions" / "results" / "resnet20_cifar" / "cifar10.json"
CLASSES = 7  # fewer than any number of channels that is made less
BOUND = 0.15  # of the relative difference of the outputs at 8 bits, with random weights and images


@dataclass(frozen=True)
class Network:
    """A float network and the images that it takes.

    Attributes
    ----------
    make : callable
        The network, untrained.
    image : (H, W, C)
    source : str
        Where its code comes from.
    note : str
        What in it is no plain convolution, and what becomes of that.
    """

    make: Callable[[], nn.Module]
    image: tuple[int, int, int]
    source: str
    note: str = ""


def thinned(make, by=8, device="meta"):
    """A published network with a fraction of its channels, made small without ever being large."""
    with torch.device(device):
        net = make()

    def few(channels):
        return channels if channels < max(by, 8) else channels // by

    for name, module in list(net.named_modules()):
        match module:
            case nn.Conv2d():
                inputs, outputs = few(module.in_channels), few(module.out_channels)
                is_depthwise = module.groups == module.in_channels > 1
                groups = inputs if is_depthwise else math.gcd(module.groups, inputs, outputs)
                geometry = module.kernel_size, module.stride, module.padding, module.dilation, groups
                net.set_submodule(name, nn.Conv2d(inputs, outputs, *geometry, bias=module.bias is not None))
            case nn.Linear():
                net.set_submodule(name, nn.Linear(few(module.in_features), few(module.out_features)))
            case nn.BatchNorm2d():
                net.set_submodule(name, nn.BatchNorm2d(few(module.num_features), module.eps))
    return net


def seeded(make, seed=0):
    """A network in evaluation mode, with random weights and statistics through which the image is seen."""
    torch.manual_seed(seed)
    net = make()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


class LeNet5(nn.Module):
    """LeCun et al. 1998, as courses write it today: ReLU and max-pools, grey digits."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        return self.fc3(functional.relu(self.fc2(functional.relu(self.fc1(x)))))


def regression():
    """One linear layer on grey digits of 28x28; its softmax is the loss's."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def mlp():
    """Three linear layers on grey digits of 28x28."""
    hidden = [nn.Linear(784, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 10))


PLANS = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    16: (64, 64, "M", 128, 128, "M", *3 * (256,), "M", *3 * (512,), "M", *3 * (512,), "M"),
}


class CifarVGG(nn.Module):
    """VGG for 32x32 images: convolutions with batch norm, one linear layer."""

    def __init__(self, depth):
        super().__init__()
        self.features = self._make_layers(PLANS[depth])
        self.classifier = nn.Linear(512, CLASSES)

    def forward(self, x):
        out = self.features(x)
        out = out.view(out.size(0), -1)
        return self.classifier(out)

    def _make_layers(self, plan):
        layers, inputs = [], 3
        for x in plan:
            if x == "M":
                layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
            else:
                layers += [nn.Conv2d(inputs, x, kernel_size=3, padding=1), nn.BatchNorm2d(x)]
                layers += [nn.ReLU(inplace=True)]
                inputs = x
        return nn.Sequential(*layers, nn.AvgPool2d(kernel_size=1, stride=1))


class OptionA(nn.Module):
    """A block of He et al. 2016 for CIFAR-10: its shortcut drops pixels and adds channels of zeros."""

    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
        self.shortcut, self.added = nn.Sequential(), (planes - inputs) // 2

    def forward(self, x):
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        short = self.shortcut(x)
        if self.added:
            pads = (0, 0, 0, 0, self.added, self.added)
            short = functional.pad(x[:, :, ::2, ::2], pads, "constant", 0)
        out += short
        return functional.relu(out)


class CifarResNet(nn.Module):
    """ResNet-20, 32, 56 and 110 for CIFAR-10, with the names of the weights that are published for them."""

    def __init__(self, depth, channels=16, classes=10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        blocks = (depth - 2) // 6
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                OptionA(channels * max(1, k // 2), channels * k, 1 if k == 1 else 2),
                *(OptionA(channels * k, channels * k, 1) for _ in range(blocks - 1)),
            )
            for k in (1, 2, 4)
        )
        self.linear = nn.Linear(4 * channels, classes)

    def forward(self, x):
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = functional.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)


class CifarBlock(nn.Module):
    """A block of ResNet-18 for 32x32 images, with batch norm after each convolution."""

    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x):
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return functional.relu(out)


class PreActBlock(nn.Module):
    """The same with batch norm and ReLU before each convolution: He et al. 2016, identity mappings."""

    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(planes)
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        if stride != 1 or inputs != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False))

    def forward(self, x):
        out = functional.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(functional.relu(self.bn2(out)))
        out += shortcut
        return out


class CifarResNet18(nn.Module):
    """ResNet-18 for 32x32 images, of either block."""

    def __init__(self, block):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64) if block is CifarBlock else nn.Identity()
        stages = ((64 * max(1, k // 2), 64 * k, 1 if k == 1 else 2) for k in (1, 2, 4, 8))
        self.stages = nn.Sequential(
            *(nn.Sequential(block(*sizes), block(sizes[1], sizes[1], 1)) for sizes in stages)
        )
        self.relu = nn.ReLU() if block is CifarBlock else nn.Identity()
        self.linear = nn.Linear(512, CLASSES)

    def forward(self, x):
        out = self.stages(self.relu(self.bn1(self.conv1(x))))
        out = functional.avg_pool2d(out, 4)
        out = out.view(out.size(0), -1)
        return self.linear(out)


def _torchvision(name, size, note="", by=8, device="meta", **options):
    def build():
        return getattr(import_torchvision().models, name)(num_classes=CLASSES, **options)

    return Network(lambda: thinned(build, by, device), (size, size, 3), f"torchvision's {name}", note)


def _cifar(make, *arguments, note):
    return Network(lambda: thinned(lambda: make(*arguments)), (32, 32, 3), "published for CIFAR-10", note)


FLATTEN = "the first linear layer reads a map: a convolution as large as it"
VGG_POOL = f"{FLATTEN}; at this size the adaptive pool is none"
GROUPS = "grouped convolutions"
LINEAR = "depthwise convolutions; sums that no ReLU follows have signed codes"
SQUEEZE = "products with one pixel; tables for the activations"
SIDE = "concatenation"
PLAIN = {"aux_logits": False, "init_weights": False}

# by name: every one is converted by `tests/test_networks.py` and run in every way
NETWORKS = {
    "LeNet-5": Network(LeNet5, (32, 32, 1), "courses", FLATTEN),
    "Softmax regression": Network(regression, (28, 28, 1), "courses", "one layer: nothing is left to switch"),
    "MLP": Network(mlp, (28, 28, 1), "courses", "the first layer is a convolution as large as the image"),
    "VGG-11 for CIFAR-10": _cifar(CifarVGG, 11, note="view; an average pool of one pixel is left out"),
    "VGG-16 for CIFAR-10": _cifar(CifarVGG, 16, note="view; an average pool of one pixel is left out"),
    **{
        f"ResNet-{depth} for CIFAR-10": Network(
            lambda depth=depth: CifarResNet(depth, 4),
            (32, 32, 3),
            "published for CIFAR-10",
            "option-A shortcuts: a fixed 1x1 convolution of 0 and 1",
        )
        for depth in (20, 32, 56, 110)
    },
    "ResNet-18 for CIFAR-10": _cifar(CifarResNet18, CifarBlock, note="avg_pool2d as large as the map"),
    "PreAct ResNet-18 for CIFAR-10": _cifar(
        CifarResNet18, PreActBlock, note="batch norm of a sum: a gain and a bias of the next requantize"
    ),
    "AlexNet": _torchvision("alexnet", 224, VGG_POOL),
    "VGG-11": _torchvision("vgg11", 224, VGG_POOL, by=32),
    "VGG-16": _torchvision("vgg16", 224, VGG_POOL, by=32),
    "VGG-11 with batch norm": _torchvision("vgg11_bn", 224, VGG_POOL, by=32),
    "VGG-16 with batch norm": _torchvision("vgg16_bn", 224, VGG_POOL, by=32),
    "ResNet-18": _torchvision("resnet18", 64),
    "ResNet-34": _torchvision("resnet34", 64),
    "ResNet-50": _torchvision("resnet50", 64),
    "ResNet-101": _torchvision("resnet101", 64),
    "ResNeXt-50 32x4d": _torchvision("resnext50_32x4d", 64, GROUPS),
    "Wide ResNet-50-2": _torchvision("wide_resnet50_2", 64),
    "MNASNet 1.0": _torchvision("mnasnet1_0", 64, LINEAR),
    "MobileNetV2": _torchvision("mobilenet_v2", 64, LINEAR),
    "RegNet X 400MF": _torchvision("regnet_x_400mf", 64, GROUPS, device="cpu"),
    "RegNet Y 400MF": _torchvision("regnet_y_400mf", 64, SQUEEZE, device="cpu"),
    "SqueezeNet 1.1": _torchvision("squeezenet1_1", 64, SIDE),
    "GoogLeNet": _torchvision("googlenet", 64, f"{SIDE}; max-pools with ceil_mode", **PLAIN),
    "Inception v3": _torchvision(
        "inception_v3", 75, f"{SIDE}; kernels of 1x7 and 7x1, written out as 7x7", 16, **PLAIN
    ),
    "DenseNet-121": _torchvision(
        "densenet121", 64, f"{SIDE}, after batch norm and ReLU; averages of windows"
    ),
    "MobileNetV3 small": _torchvision("mobilenet_v3_small", 64, f"{SQUEEZE}, Hardswish"),
    "EfficientNet-B0": _torchvision("efficientnet_b0", 64, f"{SQUEEZE}, SiLU", device="cpu"),
    "ShuffleNet V2": _torchvision("shufflenet_v2_x1_0", 64, f"{SIDE}; chunk and shuffled channels", by=2),
}


def table():
    """The networks, for a page."""
    rows = []
    for name, network in NETWORKS.items():
        height, width, channels = network.image
        kind = "grey" if channels == 1 else "colour"
        rows.append((name, f"{height}x{width}, {kind}", network.source, network.note))
    return Table(("network", "images of the test", "from", "what is no plain convolution"), rows)


def without_training():
    """ResNet-20 with published weights on CIFAR-10, at each width, from its record."""
    first, *rows = results.read(RESNET20)["rows"]

    def cells(row):
        points = (row["correct"] - first["correct"]) / row["images"]
        return f"{row['correct'] / row['images']:.2%}", f"{100 * points:+.2f}", f"{row['bitops'] / 1e9:.2f}"

    measured = [(f"{row['widths']} bits", *cells(row)) for row in rows]
    head = "network", f"right of {first['images']:,}", "points from float", "G BitOPs"
    return Table(head, [("float", f"{first['correct'] / first['images']:.2%}", "", ""), *measured])
