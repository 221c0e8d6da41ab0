"""Conversion of clips to training samples."""

from __future__ import annotations

import numpy as np

from tests.training.curation.hostile import video
from training.curation import samples
from training.curation.pipeline import ShardSettings
from training.curation.record import Record


def test_reference_images_are_read_once_in_order_of_time(tmp_path, monkeypatch):
    """Clips of one shot share frames, and each clip gets the images of its own characters."""
    path = str(video(tmp_path / "x.mp4", frames=40))
    late, early = ({"frame": k, "box": [4.0 + k, 5.0, 40.0 + k, 50.0]} for k in (30, 6))
    clips = [Record(path, "x", data={"reference": each}) for each in ([late, early], [early, late], [late])]
    alone = [samples.reference_images([clip], ShardSettings(reference_size=32))[0] for clip in clips]
    read, read_frame = [], samples.read_frame
    monkeypatch.setattr(samples, "read_frame", lambda source, k: read.append(k) or read_frame(source, k))
    together = samples.reference_images(clips, ShardSettings(reference_size=32))
    assert read == [6, 30]
    for clip, images, expected in zip(clips, together, alone, strict=True):
        assert len(images) == len(clip.data["reference"])
        for image, other in zip(images, expected, strict=True):
            assert image.shape == (32, 32, 3)
            np.testing.assert_array_equal(image, other)
    assert not np.array_equal(together[0][0], together[0][1])
