"""A software GPU: what stands in for CUDA's runtime and TensorRT where there is neither.

Not a double of our code, but a simulator of the vendors' interfaces, as strict as their manuals allow. Memory
is the host's, fresh memory is no number, freed memory is out of bounds, and queued work runs as late as it
may, or in the order least expected: what is read before it was waited for is wrong.
"""
