"""From the PyTorch model to a verified bundle of ONNX graphs. Read `pack.py` first."""
