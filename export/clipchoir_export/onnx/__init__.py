"""Towers -> ONNX graphs."""
