"""PyTorch frontend: ``torch.export`` programs to the IR."""

from .convert import ImportedGraph, import_model

__all__ = ["ImportedGraph", "import_model"]
