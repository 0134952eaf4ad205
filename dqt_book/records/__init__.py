"""Tables, figures and statuses, drawn from recorded runs alone.

=============== ===================================================================================
`comparison`    ResNet-18 on CIFAR-10 beside other methods: means over seeds, paired tests, bands
`panels`        the comparison as a figure of two panels
`looking`       its controller's duels and its second looks, as figures
`imagenet`      ResNet-50 and MobileNetV2 on ImageNet
`imagenet_plan` what a training on ImageNet takes, from what was measured and what is assumed
`exports`       which way to run printed which digest
`cpu`, `gpu`    time on CPUs and on GPUs
`claims`        every claim of the project with its status
=============== ===================================================================================
"""
