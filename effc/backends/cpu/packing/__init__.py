"""Weight layouts of the CPU kernels, as numpy functions."""
