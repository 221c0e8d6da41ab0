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


def test_any_window_of_a_long_scene(registered, make_scene, bundle, tmp_path, capsys):
    """Four windows of 9 frames, the third is looked at, edited and resumed; the windows before it are kept."""
    scene = make_scene(length=33, steps=5)
    state, masks = tmp_path / "state.safetensors", tmp_path / "masks.npz"
    outputs = ["-o", str(state), "--masks", str(masks), "--overlay", str(tmp_path / "sheet.png")]
    assert main(["probe", str(scene), "--window", "5", *outputs]) == 2
    assert "window 5; expected a number from 1 to 4" in capsys.readouterr().err
    assert main(["probe", str(scene), "--window", "3", *outputs]) == 0
    printed = capsys.readouterr()
    assert "Window 3 of 4 (frames 16 to 25" in printed.out and "Window 2/4, about" in printed.err
    assert {path.name for path in (tmp_path / "state.windows").glob("w*")} == {
        "window_0001.safetensors",
        "window_0002.safetensors",
    }

    def generated(name: str, *options: object) -> tuple[np.ndarray, list[bool]]:
        out = {key: str(tmp_path / f"{name}.{key}") for key in ("mp4", "npz", "json")}
        command = ["generate", str(scene), "-o", out["mp4"], "--masks", out["npz"], "--json", out["json"]]
        assert main([*command, *map(str, options)]) == 0
        rows = json.loads((tmp_path / f"{name}.json").read_text())["windows"]
        return np.load(out["npz"])["masks"], [row["generated"] for row in rows]

    resumed, made = generated("resumed", "--resume-from", state)
    assert made == [False, False, True, True]
    assert np.array_equal(resumed, generated("whole")[0])

    with np.load(masks) as archive:
        edited, start = archive["masks"].copy(), int(archive["start"])
        assert list(archive["names"]) == ["Ada", "Bo"] and start == 5 and edited.shape[1] == 2
    edited[:] = 0
    edited[0, :, :, :2], edited[1, :, :, 4:] = 1, 1
    np.savez(masks, masks=edited, names=["Ada", "Bo"], start=start)
    make_scene(length=33, steps=5, router={"mode": "intra", "masks": str(masks)})
    with record_calls(bundle.transformer) as calls:
        result, made = generated("edited", "--resume-from", state)
    assert made == [False, False, True, True] and len(calls) == 3 + 5  # the router took 2 steps of window 3
    assert np.array_equal(result[:, :4], resumed[:, :4]) and np.allclose(result[:, start : start + 1], edited[:, :1])


def test_states_that_do_not_fit(registered, make_scene, tmp_path, capsys):
    state = tmp_path / "state.safetensors"
    assert main(["probe", str(make_scene(length=17)), "--window", "2", "-o", str(state)]) == 0
    command = ["generate", str(tmp_path / "scene" / "scene.json"), "-o", str(tmp_path / "a.mp4")]
    for scene, problem in (
        ({"length": 9}, "window 2 of 2 (frames 8 to 17); expected a window of this scene, of 1 window"),
        ({"length": 13}, "(window 2: frames 8 to 13)"),
        ({"length": 17, "seed": 1}, "was saved with seed"),
        ({"length": 17, "steps": 9}, "was saved with steps"),
    ):
        make_scene(**scene)
        capsys.readouterr()
        assert main([*command, "--resume-from", str(state)]) == 2
        printed = capsys.readouterr().err
        assert problem in printed and "Traceback" not in printed and "Denoising" not in printed
    assert not (tmp_path / "a.mp4").exists()
