"""From a float model in torch to a network of nested codes, or in one call to a program.

============== ========================================================================================
`conversion`   a float network becomes a `training.network.NestedNet`, its steps from a few images
`ordinary`     what that asks of the float network
`tracing`      its graph
`float_graph`  what the graph says: `forms`, ways to write one thing; `moves`, slices and paddings
`joints`       which part between two layers a call becomes
`comparison`   the float network beside the converted one, layer by layer
`quantization` a program and its report from a float network and images, in one call
`from_files`   a model, weights and images as `python -m dqt_core quantize` names them
============== ========================================================================================
"""

from dqt_core._extras import needed

with needed("dqt_core.training.conversion", "train"):
    import torch  # noqa: F401
