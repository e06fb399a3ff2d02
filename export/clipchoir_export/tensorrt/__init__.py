"""ONNX graphs -> TensorRT engines."""
