"""Sources that go on while they are read: cameras, network streams, pipes, frames pushed by the caller.

`open_stream_source` in `opening.py` is the door; what every source has is `StreamSource` in `source.py`.
"""
