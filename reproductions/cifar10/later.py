"""A controller further into the network: it reads what some layers made, at a fixed width, and decides for the rest.

Its features are the mean and the mean square of every channel, so that it sees a channel's spread too.
"""

import torch
from torch import Tensor

from dqt_core.training.controller import Controller
from dqt_core.training.layers import Coded, Quantizer, Selection
from dqt_core.training.network import NestedNet
from reproductions.cifar10.decisions import inputs_of


@torch.no_grad()
def place_controller(net: NestedNet, behind: str, width: int, sample: Tensor) -> None:
    """Put a new controller, in place of the one there is, behind a `Quantizer` of a network.

    Parameters
    ----------
    net : NestedNet
        With a controller; changed.
    behind : str
        Name of the quantizer whose codes the controller reads.
    width : int
        Of the layers in front of it, where it decides.
    sample : float32 tensor, (N, C, H, W)
        Normalised images, from which its steps are taken.
    """
    graph, named = net.graph.graph, dict(net.graph.named_modules())
    places = [node.target for node in graph.nodes if isinstance(named.get(node.target), Quantizer)]
    if behind not in places:
        raise ValueError(f"behind={behind!r} makes no codes of this network, expected one of {places}")
    nodes = {node.target: node for node in graph.nodes if node.op == "call_module"}
    old, codes = nodes["controller"], nodes[behind]
    old.replace_all_uses_with(old.args[0])
    with graph.inserting_after(codes):
        new = graph.call_module("controller", (codes, old.args[1]))
    codes.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    graph.erase_node(old)
    order = [node.target for node in graph.nodes]
    layers = [named[target] for target in order[: order.index("controller")] if target in named]
    before = sum(layer in net.switch_layers for layer in layers)
    net.graph.recompile()
    net.graph.controller = _calibrated(net, before, width, sample)


def _calibrated(net: NestedNet, before: int, width: int, sample: Tensor) -> Controller:
    with inputs_of(net.controller) as given:
        net.eval()(sample, width)
    codes: Coded = given[0][0]
    controller = Controller(
        codes.codes.shape[1],
        len(net.switch_layers) - before,
        net.choices,
        net.rounding,
        signed=codes.signed,
        before=(net.index_of(width),) * before,
        spread=True,
    )
    for layer in (controller.fc1, controller.fc2):
        layer.macs = layer.weight.numel()
    controller.logits(codes, Selection(is_calibrating=True))
    return controller.train(net.training)
