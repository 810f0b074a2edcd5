"""Makes random valid ONNX graphs: `maker.py` grows them, `compute.py` and `shapes.py` have the steps."""
