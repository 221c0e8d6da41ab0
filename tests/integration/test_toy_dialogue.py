"""One recording of two puppets and a timeline: each mouth moves in its own turns."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from bya_core.cli import main as cli
from bya_core.evaluation.binding import correlations
from bya_core.io.media import read_audio
from bya_core.toy.mouth import mouth_opening
from bya_core.toy.segmentation import segment_characters
from bya_core.weights.registry import MODELS
from tests.fakes import RATE, write_wav
from tests.unit.routing.puppet_scene import VALIDATION
from training.puppets import make_clip
from training.puppets.looks import MOUTH_RGB


@pytest.mark.skipif(not MODELS["toy"].available, reason="the weights of the toy model are missing")
def test_dialogue(tmp_path: Path) -> None:
    clip = make_clip(VALIDATION + 3, 2, 64, 96, 33, motion="still", talk="turns")
    whole = clip.speeches.sum(axis=0)
    speaking = [np.flatnonzero(np.abs(speech) > 0.02) / RATE for speech in clip.speeches]
    turns = [f"SPEAKER talk 1 {t.min():.3f} {np.ptp(t):.3f} <NA> <NA> S{n} <NA> <NA>" for n, t in enumerate(speaking)]
    write_wav(tmp_path / "talk.wav", whole)
    (tmp_path / "talk.rttm").write_text("\n".join(turns))
    Image.fromarray(clip.first_frame).save(tmp_path / "start.png")
    cast = []
    for n, portrait in enumerate(clip.portraits):
        Image.fromarray(portrait).save(tmp_path / f"{n}.png")
        cast.append({"name": f"puppet {n}", "image": f"{n}.png", "speaker": f"S{n}"})
    scene = {
        "prompt": clip.prompt,
        "characters": cast,
        "dialogue": "talk.wav",
        "timeline": "talk.rttm",
        "first_frame": "start.png",
        "length": 33,
        "steps": 8,
    }
    (tmp_path / "scene.json").write_text(json.dumps(scene))
    out = tmp_path / "talk.mp4"
    assert cli.main(["generate", str(tmp_path / "scene.json"), "-o", str(out)]) == 0

    with av.open(str(out)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    regions = segment_characters(frames, clip.portraits, shared_rgb=MOUTH_RGB)
    found = correlations(mouth_opening(frames, regions, MOUTH_RGB), clip.opening)
    own, other = np.diag(found), found[[0, 1], [1, 0]]
    assert own.min() > 0.5 and (own > other + 0.4).all(), found
    sound, rate = read_audio(out)
    assert sound.abs().max() == pytest.approx(np.abs(whole[: len(sound[0])]).max(), rel=0.1)
