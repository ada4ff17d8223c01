"""Compiled kernels for a CPU, and the layout of the weights that they read."""
