"""LLaMA-VID on the device: reference model, export, runtime, calibration.

Importing this package imports nothing heavy. Start at
`llamavid.runtime.session` (answering from a bundle) or `llamavid.model`
(the PyTorch reference).
"""

__version__ = "0.1.0"
