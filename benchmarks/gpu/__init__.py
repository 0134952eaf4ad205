"""The kernels on this machine's GPU: tests, measurements, sanitizer."""
