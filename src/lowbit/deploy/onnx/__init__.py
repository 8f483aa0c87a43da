"""ONNX and QONNX files, and running them."""
