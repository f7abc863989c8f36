"""The TensorRT-LLM runner, against a stand-in that has the released signatures."""
