"""The runtime: from a video file and a question to an answer, without PyTorch. Read `session.py` first."""

import os

# ONNX Runtime's own Linux builds, from 1.29 on, tell Microsoft about every model that is loaded, and write a
# device's identity into the home folder, as soon as they are imported. Set it to 0 for that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
