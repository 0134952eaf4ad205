"""What is measured: a CPU against its peers, a training step, the kernels on a GPU."""
