"""Training, in torch: a float network becomes one on nested codes, learns, and is lowered to a program.

Along the way of a network:

================== ====================================================================================
`models`           ResNets and MobileNetV2, as torchvision names their parameters
`conversion/`      a float network is read, and becomes a `network.NestedNet`; a room of its own
`inputs`           what goes into a float network, before it has nested codes
`straight_through` codes with gradients: quantize, switch, and the batch norm of a switched layer
`steps`            the step with the least error over all widths, from weights or activations
`layers`           the layer with one table for every choice of widths; the quantizer of activations
`parts`            what stands between them: pools, sums, products, functions of one number, chosen channels
`network`          all of them together, a network which runs at widths that are given or that it chooses
`controller`       the small head that chooses the widths of each image
`objective`        the loss over several widths
`recipe`           what a run is: length, rates, optimizers; `batches`, the order and the crops of its images
`train`            the loop, exact on any number of processes (`distributed`), resumed from a `checkpoint`
`calibration`      steps and statistics from images alone, without training
`layerwise`        the same layer by layer, with the codes that err least (`code_choice`)
`lowering`         the trained network becomes a `dqt_core.program.Program`
`agreement`        where the network in torch and its program make different codes, and why
================== ====================================================================================
"""

from dqt_core._extras import needed

with needed("dqt_core.training", "train"):
    import torch  # noqa: F401
