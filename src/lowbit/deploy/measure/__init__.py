"""Deployed models against ONNX Runtime and PyTorch, in one run."""
