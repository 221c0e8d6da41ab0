"""`bya probe`, and `bya generate --resume-from`."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from bya_core.cli.main import main
from tests.unit.routing.calls import record_calls


def test_probe_edit_and_resume(registered, make_scene, bundle, tmp_path, capsys):
    scene = make_scene(steps=5)
    state, masks, sheet = (tmp_path / name for name in ("state.safetensors", "masks.npz", "sheet.png"))
    options = ["--output", state, "--masks", masks, "--overlay", sheet]
    assert main(["probe", str(scene), *map(str, options)]) == 0
    printed = capsys.readouterr().out
    assert "After 2 of 5 steps" in printed
    for name in ("Ada", "Bo"):
        assert any(line.startswith(name) and "confidence" in line for line in printed.splitlines())
    assert Image.open(sheet).size[0] > 4 * 96

    def generated_masks(name: str, *options: object) -> np.ndarray:
        out = tmp_path / f"{name}.npz"
        with record_calls(bundle.transformer) as calls:
            command = ["generate", str(scene), "-o", str(tmp_path / f"{name}.mp4"), "--masks", str(out)]
            assert main([*command, *map(str, options)]) == 0
        assert len(calls) == (3 if options else 5)  # 2 steps are reused
        return np.load(out)["masks"]

    assert np.array_equal(generated_masks("resumed", "--resume-from", state), generated_masks("whole"))
    with np.load(masks) as archive:
        edited, names = archive["masks"].copy(), archive["names"]
    assert list(names) == ["Ada", "Bo"]
    edited[0] = 0
    edited[0, :, :, :2] = 1
    np.savez(masks, masks=edited, names=names)
    make_scene(steps=5, router={"mode": "intra", "masks": str(masks)})
    assert np.allclose(generated_masks("edited", "--resume-from", state), edited)

    scene.write_text(json.dumps({**json.loads(scene.read_text()), "seed": 3}))
    assert main(["generate", str(scene), "-o", str(tmp_path / "no.mp4"), "--resume-from", str(state)]) == 2
    assert "seed 0; expected 3" in capsys.readouterr().err and not (tmp_path / "no.mp4").exists()


def test_probe_saves_an_overlay_video(registered, make_scene, tmp_path):
    assert main(["probe", str(make_scene()), "--overlay", str(tmp_path / "masks.mp4")]) == 0
    assert (tmp_path / "masks.mp4").stat().st_size > 1000
    assert main(["probe", str(make_scene()), "--masks", str(tmp_path / "masks.npy")]) == 2


def test_scene_of_several_windows_is_refused(registered, make_scene, capsys):
    assert main(["probe", str(make_scene(length=17))]) == 2
    assert "windows; expected one window (9 frames)" in capsys.readouterr().err
