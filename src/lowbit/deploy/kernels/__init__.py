"""A network on the compiled kernels: what is lowered to them, and what stays on PyTorch."""
