"""The runtime: from a video file and a question to an answer, without PyTorch. Read `session.py` first."""
