"""Triton's entry point of the backend `onnxruntime`; what it does is in `clipchoir_server.backend`."""

from clipchoir_server.backend.step import OnnxRuntimeStep as TritonPythonModel

__all__ = ["TritonPythonModel"]
