"""The onnxruntime backend of the embedded tritonserver."""
