"""Save and load a routing with its partially denoised latents as one safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import bya_core
from bya_core.config import RouterMode
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.io.atomic import atomic_write
from bya_core.io.files import existing_file
from bya_core.io.outputs import check_output
from bya_core.masks import MaskControl
from bya_core.routing.result import Routing, confidences
from bya_core.sampling import DenoiseState
from bya_core.sampling.conditions import Prepared
from bya_core.sampling.step_cache import FullStep, StepCacheState
from bya_core.scene.types import Scene
from bya_core.validation import parse_json

FORMAT = "bind-your-avatar routing 1"
MATRIX = "audio-character matrix"


def save_routing(
    routing: Routing,
    path: str | os.PathLike[str],
    prepared: Prepared,
    window: tuple[int, int, int] = (1, 1, 0),
    continues: str = "",
) -> None:
    """Save masks, mask control and, if present, the partially denoised latents. The file is written atomically.

    Args:
        routing: to save.
        path: must end in .safetensors.
        prepared: scene of the routing.
        window: number of the window, number of windows, and first video frame of the window.
        continues: version of the previous window, see `bya_core.pipelines.long_video.PreparedWindow`.

    Raises:
        InputError: the path cannot be written.
    """
    path = check_output(path, (".safetensors",), "the state")
    control = routing.control
    tensors = {name: getattr(control, name) for name in ("masks", "strength", "start_percent", "end_percent")}
    tensors["matrix"] = routing.matrix
    metadata: dict[str, Any] = {
        "version": bya_core.__version__,
        "origin": routing.origin,
        "calls": routing.calls,
        "notices": routing.notices,
        "scene": _fixed_properties(prepared.scene, prepared.grid, prepared.conditions.latent_shape),
        "window": list(window),
        "continues": continues,
        "conditions": _changeable_inputs(prepared.scene),
    }
    if (state := routing.state) is not None:
        metadata["step"] = state.step
        tensors |= {"latents": state.latents, "generator": state.generator}
        if state.previous_x0 is not None:
            tensors["previous_x0"] = state.previous_x0
        if state.step_cache is not None:
            metadata["step_cache"] = _pack_step_cache(state.step_cache, tensors)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        header = {"format": FORMAT, "metadata": json.dumps(metadata, ensure_ascii=False)}
        temporary.write_bytes(save(plain, header))  # `save_file` sets owner-only permissions


@dataclass(frozen=True)
class StateWindow:
    """The window of a video that a state belongs to.

    Args:
        number, windows: of the window, from 1, and of all windows.
        start: its first video frame.
        frames: its video frames.
        key: identifies the content of the file.
    """

    number: int
    windows: int
    start: int
    frames: int
    key: str


def read_window(path: str | os.PathLike[str]) -> StateWindow:
    """The window that a state belongs to. Raises InputError for a missing, damaged or unrelated file."""
    path = existing_file(path, "the state")
    _, metadata = _read(path)
    try:
        number, windows, start = (int(value) for value in metadata.get("window", (1, 1, 0)))
        key = hashlib.sha256(path.read_bytes()).hexdigest()
        return StateWindow(number, windows, start, int(metadata["scene"]["frames"]), key)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(path) from error


def check_state(path: str | os.PathLike[str], scene: Scene, grid: TokenGrid, channels: int) -> None:
    """Raise InputError unless a state belongs to this scene, or window of a scene, with latents of `channels`."""
    path = existing_file(path, "the state")
    metadata = _read(path)[1]
    order = _order(metadata["scene"].get("characters"), scene.names)
    _check_scene(path, metadata, _fixed_properties(scene, grid, grid.latent_shape(channels)), order is not None)


def load_routing(path: str | os.PathLike[str], prepared: Prepared, continues: str = "") -> Routing:
    """Load what `save_routing` wrote for the same scene.

    Characters are matched by name. Prompt, images, speech, guidance and audio-character matrix may have changed: those
    of the scene are used from here on, and a notice is added.

    Args:
        path: of the file.
        prepared: the encoded scene.
        continues: version of the previous window that `prepared` continues.

    Raises:
        InputError: a missing, damaged or unrelated file, or one of another scene or of another previous window.
    """
    path = existing_file(path, "the state")
    tensors, metadata = _read(path)
    if (saved := metadata.get("continues", "")) != continues:
        problem = f"the state {path} continues a previous window with {saved or 'no version'}"
        raise InputError(problem, continues or "the first window", "run bya probe for this window again")
    order = _order(metadata["scene"].get("characters"), prepared.scene.names)
    fixed = _fixed_properties(prepared.scene, prepared.grid, prepared.conditions.latent_shape)
    _check_scene(path, metadata, fixed, reordered=order is not None)
    scene = prepared.scene
    try:
        if order is not None:
            _reorder(tensors, order)
            scene = _in_saved_order(scene, order)
        routing = _routing(tensors, metadata, prepared)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, OverflowError, AttributeError) as error:
        raise _damaged(path) from error
    if order is not None:
        notice = f"The state {path.name} has the characters in another order: its masks were matched by name."
        routing = replace(routing, matrix=prepared.scene.matrix, notices=(*routing.notices, notice))
    saved, current = metadata["conditions"], _changeable_inputs(scene)
    if order is not None:
        current[MATRIX] = saved.get(MATRIX, "")
    changed = " and ".join(name for name, value in current.items() if saved.get(name) != value)
    if not changed:
        return routing
    notice = f"The state {path.name} was saved with other {changed}: those of the scene are used from here on."
    return replace(routing, notices=(*routing.notices, notice))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        metadata = parse_json(header["metadata"], path.name) if header.get("format") == FORMAT else None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _damaged(path) from error
    if not isinstance(metadata, dict) or not all(
        isinstance(metadata.get(key), dict) for key in ("scene", "conditions")
    ):
        raise _damaged(path)
    return tensors, metadata


def _damaged(path: Path) -> InputError:
    problem = f"{path} is damaged or not a routing state"
    return InputError(problem, "a file saved by `bya probe --output`", "create it again")


def _routing(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], prepared: Prepared) -> Routing:
    """Routing from the content of a file. Raises KeyError, TypeError, ValueError or RuntimeError if invalid."""
    scene, shape = prepared.scene, (1, *prepared.conditions.latent_shape)
    count = len(scene.characters)
    masks = _validated(tensors["masks"], (count, *prepared.grid.shape), unit=True)
    matrix = _validated(tensors["matrix"], tuple(scene.matrix.shape), unit=True)
    state = None
    if "latents" in tensors:
        total, step, generator = scene.sampling.steps, int(metadata["step"]), tensors["generator"]
        if not 0 <= step <= total:
            raise ValueError(step)
        torch.Generator("cpu").set_state(generator)  # raises if invalid
        previous_x0 = tensors.get("previous_x0")
        previous_x0 = None if previous_x0 is None else _validated(previous_x0, shape)
        step_cache = None
        if "step_cache" in metadata:
            step_cache = _unpack_step_cache(metadata["step_cache"], tensors, shape, tuple(masks.shape))
            if not all(0 <= full.step < step for full in step_cache.full_steps):
                raise ValueError(step)
        state = DenoiseState(step, total, _validated(tensors["latents"], shape), previous_x0, generator, step_cache)
    controls = [_validated(tensors[name], (count,), unit=True) for name in ("strength", "start_percent", "end_percent")]
    if metadata["origin"] not in get_args(RouterMode):
        raise ValueError(metadata["origin"])
    return Routing(
        origin=metadata["origin"],
        control=MaskControl(masks, *controls),
        confidence=confidences(masks),
        matrix=matrix if metadata["conditions"].get(MATRIX) == _hash(scene.matrix) else scene.matrix,
        state=state,
        calls=int(metadata["calls"]),
        notices=tuple(str(notice) for notice in metadata["notices"]),
    )


def _pack_step_cache(state: StepCacheState, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Add the tensors of a step cache to `tensors` and return its other values."""
    if state.masks is not None:
        tensors["step_cache_masks"] = state.masks
    tensors |= {f"step_cache_latents_{k}": full.latents for k, full in enumerate(state.full_steps)}
    return {"converged": state.converged, "full_steps": [[full.branches, full.step] for full in state.full_steps]}


def _unpack_step_cache(
    metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], latents: tuple[int, ...], masks: tuple[int, ...]
) -> StepCacheState:
    """Inverse of `_pack_step_cache`; `latents` and `masks` are expected shapes. Raises as `_routing` does."""
    full_steps = [
        FullStep(str(branches), int(step), _validated(tensors[f"step_cache_latents_{k}"], latents))
        for k, (branches, step) in enumerate(metadata["full_steps"])
    ]
    router = tensors.get("step_cache_masks")
    if router is not None:
        router = _validated(router, (*router.shape[:2], *masks), unit=True)
    return StepCacheState(router, bool(metadata["converged"]), tuple(full_steps))


def _validated(tensor: Tensor, shape: tuple[int, ...], unit: bool = False) -> Tensor:
    """Return the tensor; raises ValueError unless it has this shape, is finite and, if `unit`, lies in 0..1."""
    if tuple(tensor.shape) != shape or not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
        raise ValueError(shape)
    if unit and (float(tensor.min()) < 0 or float(tensor.max()) > 1):
        raise ValueError("outside 0..1")
    return tensor


def _order(saved: Any, names: list[str]) -> list[int] | None:
    """Index in the file of each character; None if the order is the same, or the characters are others."""
    if not isinstance(saved, list) or saved == names or sorted(map(str, saved)) != sorted(names):
        return None
    return [saved.index(name) for name in names]


def _reorder(tensors: dict[str, Tensor], order: list[int]) -> None:
    """Bring all tensors with an axis of characters into the order of the scene."""
    for name in ("masks", "strength", "start_percent", "end_percent"):
        tensors[name] = tensors[name][order]
    if "step_cache_masks" in tensors:
        tensors["step_cache_masks"] = tensors["step_cache_masks"][:, :, order]


def _in_saved_order(scene: Scene, order: list[int]) -> Scene:
    """The scene with its characters, and their speech, in the order of the file."""
    back = [order.index(index) for index in range(len(order))]
    speeches = list(scene.speeches)
    speeches[: len(back)] = [speeches[index] for index in back if index < len(speeches)]
    strength = None if scene.speech_strength is None else scene.speech_strength[back]
    characters = tuple(scene.characters[index] for index in back)
    return replace(scene, characters=characters, speeches=tuple(speeches), speech_strength=strength)


def _check_scene(path: Path, metadata: Mapping[str, Any], fixed: Mapping[str, Any], reordered: bool) -> None:
    """Raise InputError with the first difference if the file belongs to another scene."""
    for name, expected in fixed.items():
        if name == "characters" and reordered:
            continue
        if (saved := metadata["scene"].get(name)) != expected:
            problem = f"the state {path} was saved with {name} {_shown(saved)}"
            hint = "create a new state of this scene, or restore the scene"
            raise InputError(problem, f"{_shown(expected)}, as in the scene", hint)


def _fixed_properties(scene: Scene, grid: TokenGrid, latents: tuple[int, ...]) -> dict[str, Any]:
    """Properties of the scene that an interrupted run cannot change."""
    height, width = grid.pixels
    return {
        "size": f"{width}x{height}",
        "frames": grid.video_frames,
        "characters": [character.name for character in scene.characters],
        "speech streams": len(scene.speeches),
        "steps": scene.sampling.steps,
        "scheduler": scene.sampling.scheduler,
        "seed": scene.sampling.seed,
        "latents": list(latents),
    }


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _changeable_inputs(scene: Scene) -> dict[str, str]:
    """Hashes of the inputs that may change when a run is resumed."""
    speeches = [(s.waveform, s.sample_rate, s.offset, s.gain) if s else ("silent",) for s in scene.speeches]
    fit = () if scene.first_frame_fit == "crop" else (scene.first_frame_fit,)
    sampling = scene.sampling
    return {
        "prompts": _hash(scene.prompt, scene.negative_prompt, *scene.prompts),
        "images": _hash(*(character.image for character in scene.characters), scene.first_frame, *fit),
        "speech": _hash(*(part for speech in speeches for part in speech), scene.speech_strength),
        MATRIX: _hash(scene.matrix),
        "guidance": _hash(sampling.guidance_scale, sampling.audio_guidance_scale, sampling.drop_identity),
    }


def _hash(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(repr(tuple(part.shape)).encode() + part.detach().cpu().float().contiguous().numpy().tobytes())
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]
