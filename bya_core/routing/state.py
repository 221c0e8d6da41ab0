"""A routing with its half-done run as one safetensors file: made in one process, gone on with in another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import bya_core
from bya_core.config import RouterMode
from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write, check_output
from bya_core.io.media import existing_file
from bya_core.masks import MaskControl
from bya_core.routing.result import Routing, confidences
from bya_core.sampling import DenoiseState
from bya_core.sampling.prepared import Prepared
from bya_core.sampling.step_cache import FullStep, StepCacheState
from bya_core.scene.types import Scene

FORMAT = "bind-your-avatar routing 1"
MATRIX = "audio-character matrix"


def save_routing(routing: Routing, path: str | os.PathLike[str], prepared: Prepared) -> None:
    """Write masks, how they act and the half-done run, if there is one; all of the file or nothing.

    Args:
        routing: of the scene.
        path: ends in .safetensors.
        prepared: the scene it was made from.

    Raises:
        InputError: a path that cannot be written to.
    """
    path = check_output(path, (".safetensors",), "the state")
    control = routing.control
    tensors = {name: getattr(control, name) for name in ("masks", "strength", "start_percent", "end_percent")}
    tensors["matrix"] = routing.matrix
    facts: dict[str, Any] = {
        "made_by": bya_core.__version__,
        "origin": routing.origin,
        "calls": routing.calls,
        "notices": routing.notices,
        "scene": _must_fit(prepared),
        "conditions": _may_change(prepared.scene),
    }
    if (state := routing.state) is not None:
        facts["step"] = state.step
        tensors |= {"latents": state.latents, "generator": state.generator}
        if state.previous_x0 is not None:
            tensors["previous_x0"] = state.previous_x0
        if state.reused is not None:
            facts["reused"] = _put_reused(state.reused, tensors)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        about = {"format": FORMAT, "facts": json.dumps(facts, ensure_ascii=False)}
        temporary.write_bytes(save(plain, about))  # `save_file` would shut out everybody but the owner


def load_routing(path: str | os.PathLike[str], prepared: Prepared) -> Routing:
    """Read what `save_routing` wrote, for the same scene.

    Prompt, pictures, voices, guidance and the audio-character matrix may be others than before: those of the scene act
    from here on, and a notice says so.

    Raises:
        InputError: no such file, a broken or foreign one, or one of another scene.
    """
    path = existing_file(path, "the state")
    tensors, facts = _read(path)
    _check_scene(path, facts, prepared)
    try:
        routing = _routing(tensors, facts, prepared)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _broken(path) from error
    changed = [what for what, value in _may_change(prepared.scene).items() if facts["conditions"].get(what) != value]
    if not changed:
        return routing
    notice = f"The state {path.name} was made with other {' and '.join(changed)}: from here on those of the scene act."
    return replace(routing, notices=(*routing.notices, notice))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        facts = json.loads(about["facts"]) if about.get("format") == FORMAT else None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _broken(path) from error
    if not isinstance(facts, dict) or not all(isinstance(facts.get(key), dict) for key in ("scene", "conditions")):
        raise _broken(path)
    return tensors, facts


def _broken(path: Path) -> InputError:
    came = f"{path} is broken, or no state of a router"
    return InputError(came, "a file that `python -m bya_core probe` wrote with --state", "make it again")


def _routing(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], prepared: Prepared) -> Routing:
    """Raises KeyError, TypeError, ValueError or RuntimeError where something is missing or makes no sense."""
    scene, shape = prepared.scene, (1, *prepared.conditions.latent_shape)
    count = len(scene.characters)
    masks = _fitting(tensors["masks"], (count, *prepared.grid.shape), unit=True)
    matrix = _fitting(tensors["matrix"], tuple(scene.matrix.shape), unit=True)
    state = None
    if "latents" in tensors:
        total, step, generator = scene.sampling.steps, int(facts["step"]), tensors["generator"]
        if not 0 <= step <= total:
            raise ValueError(step)
        torch.Generator("cpu").set_state(generator)  # raises where it is none
        older = tensors.get("previous_x0")
        older = None if older is None else _fitting(older, shape)
        reused = None
        if "reused" in facts:
            reused = _reused(facts["reused"], tensors, shape, tuple(masks.shape))
            if not all(0 <= ran.step < step for ran in reused.ran):
                raise ValueError(step)
        state = DenoiseState(step, total, _fitting(tensors["latents"], shape), older, generator, reused)
    controls = [_fitting(tensors[name], (count,), unit=True) for name in ("strength", "start_percent", "end_percent")]
    if facts["origin"] not in get_args(RouterMode):
        raise ValueError(facts["origin"])
    return Routing(
        origin=facts["origin"],
        control=MaskControl(masks, *controls),
        confidence=confidences(masks),
        matrix=matrix if facts["conditions"].get(MATRIX) == _hash(scene.matrix) else scene.matrix,
        state=state,
        calls=int(facts["calls"]),
        notices=tuple(str(notice) for notice in facts["notices"]),
    )


def _put_reused(reused: StepCacheState, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a preset of speed takes over from earlier steps: its tensors to the others, the rest as facts."""
    if reused.masks is not None:
        tensors["reused masks"] = reused.masks
    tensors |= {f"reused latents {k}": ran.latents for k, ran in enumerate(reused.ran)}
    return {"settled": reused.settled, "ran": [[ran.branches, ran.step] for ran in reused.ran]}


def _reused(
    facts: Mapping[str, Any], tensors: Mapping[str, Tensor], latents: tuple[int, ...], masks: tuple[int, ...]
) -> StepCacheState:
    """What `_put_reused` wrote; the other arguments are shapes. Raises as `_routing` does."""
    ran = [
        FullStep(str(branches), int(number), _fitting(tensors[f"reused latents {k}"], latents))
        for k, (branches, number) in enumerate(facts["ran"])
    ]
    router = tensors.get("reused masks")
    if router is not None:
        router = _fitting(router, (*router.shape[:2], *masks), unit=True)
    return StepCacheState(router, bool(facts["settled"]), tuple(ran))


def _fitting(tensor: Tensor, shape: tuple[int, ...], unit: bool = False) -> Tensor:
    """The tensor; raises ValueError unless it has this shape, is finite and, if `unit`, lies in 0..1."""
    if tuple(tensor.shape) != shape or not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
        raise ValueError(shape)
    if unit and (float(tensor.min()) < 0 or float(tensor.max()) > 1):
        raise ValueError("outside 0..1")
    return tensor


def _check_scene(path: Path, facts: Mapping[str, Any], prepared: Prepared) -> None:
    """Raise InputError, naming the first thing that differs, where the file belongs to another scene."""
    for what, wanted in _must_fit(prepared).items():
        if (made := facts["scene"].get(what)) != wanted:
            came = f"the state {path} was made with {what} {_shown(made)}"
            do = "make a new state of this scene, or set the scene back"
            raise InputError(came, f"{_shown(wanted)}, as the scene says", do)


def _must_fit(prepared: Prepared) -> dict[str, Any]:
    """What a run cannot change on its way, in words."""
    scene, (height, width) = prepared.scene, prepared.grid.pixels
    return {
        "size": f"{width}x{height}",
        "frames": prepared.grid.video_frames,
        "characters": [character.name for character in scene.characters],
        "voices": len(scene.speeches),
        "steps": scene.sampling.steps,
        "scheduler": scene.sampling.scheduler,
        "seed": scene.sampling.seed,
        "latents": list(prepared.conditions.latent_shape),
    }


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _may_change(scene: Scene) -> dict[str, str]:
    """Fingerprints of what a run may change on its way."""
    voices = [part for s in scene.speeches for part in (_speech_parts(s) if s else ("silent",))]
    fit = () if scene.first_frame_fit == "crop" else (scene.first_frame_fit,)
    return {
        "prompts": _hash(scene.prompt, scene.negative_prompt, *map(repr, scene.prompts)),
        "pictures": _hash(*(character.image for character in scene.characters), scene.first_frame, *fit),
        "voices": _hash(*voices, scene.speech_strength),
        MATRIX: _hash(scene.matrix),
        "guidance": _hash(
            scene.sampling.guidance_scale, scene.sampling.audio_guidance_scale, scene.sampling.drop_identity
        ),
    }


def _speech_parts(speech: Any) -> tuple[Any, ...]:
    return speech.waveform, speech.sample_rate, speech.offset, speech.gain


def _hash(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(repr(tuple(part.shape)).encode() + part.detach().cpu().float().contiguous().numpy().tobytes())
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]
