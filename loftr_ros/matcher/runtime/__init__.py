"""What runs networks besides torch: ONNX export, onnxruntime, OpenVINO."""
