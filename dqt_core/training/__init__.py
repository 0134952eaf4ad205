"""Training, in torch: a float network becomes one on nested codes, learns, and is lowered to a program.

Along the way of a network:

================== ====================================================================================
`models`           ResNets and MobileNetV2, as torchvision names their parameters
`conversion`       a float network becomes a `network.NestedNet` of `layers`, its steps from a few images
`ordinary`         what it asks of the float network; `tracing`, its graph; `inputs`, what goes into it
`float_graph`      what the graph says: `forms`, ways to write one thing; `moves`, slices and paddings
`comparison`       the float network beside the converted one, layer by layer
`straight_through` codes with gradients: quantize, switch, and the batch norm of a switched layer
`steps`            the step with the least error over all widths, from weights or activations
`layers`           the layer with one table for every choice of widths; the quantizer of activations
`parts`            what stands between them: pools, sums, products, functions of one number, chosen channels
`joints`           which of them a call of the float network becomes
`network`          a converted network, which runs at widths that are given or that it chooses
`controller`       the small head that chooses the widths of each image
`objective`        the loss over several widths
`recipe`           what a run is: length, rates, optimizers; `batches`, the order and the crops of its images
`train`            the loop, exact on any number of processes (`distributed`), resumed from a `checkpoint`
`calibration`      steps and statistics from images alone, without training
`quantization`     all of that in one call, and a report
`from_files`       a model, weights and images as `python -m dqt_core quantize` names them
`lowering`         the trained network becomes a `dqt_core.program.Program`
`agreement`        where the network in torch and its program make different codes, and why
================== ====================================================================================
"""

from dqt_core._extras import needed

with needed("dqt_core.training", "train"):
    import torch  # noqa: F401
