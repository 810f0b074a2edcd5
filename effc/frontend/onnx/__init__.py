"""Models from ONNX: ``.onnx`` files and ``onnx.ModelProto``."""

from .convert import import_model

__all__ = ["import_model"]
