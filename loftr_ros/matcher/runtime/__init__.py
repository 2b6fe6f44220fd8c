"""Runtimes besides torch: ONNX export, onnxruntime, OpenVINO."""
