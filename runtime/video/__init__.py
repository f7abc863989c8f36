"""Files and folders as sources of frames; live sources are in `llamavid.runtime.live`."""
