"""Engines on an NVIDIA GPU: TensorRT or TensorRT-RTX by their Python bindings, CUDA by cuda-python.

Nothing here is imported on a run on the CPU, and nothing vendor's before it is needed.
"""
