"""The language model as a TensorRT-LLM Vicuna, in TensorRT-LLM's own environment (docker/a100).

Read `vicuna.py` first. This folder alone may import torch and tensorrt_llm, where a Vicuna is opened and not
before: neither is on a device that does not ask for one. No TensorRT-LLM has run this code yet: the calls are
checked against its released signatures (tests/runtime/tensorrt_llm), by which a stand-in of it answers.
"""
