"""Conversion of a clip to the files of a webdataset sample and back. Everything except the video is lossless.

Extensions (after `KEY.`): `json`, `mp4`, `masks.npz`, `portrait0.png` ..., `speech0.wav` ..., `features.safetensors`
if there are speech features or mouths.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from itertools import islice
from typing import Any

import av
import numpy as np
from PIL import Image
from safetensors.numpy import load, save
from scipy.io import wavfile

from bya_core.errors import InputError
from bya_core.io.audio import MAX_SAMPLES
from bya_core.io.images import MAX_PIXELS
from bya_core.io.media import load_arrays, write_video
from bya_core.io.workspace import temporary_folder
from training.data.clip import SAMPLE_RATE, ClipSample

FORMAT = 1
DECODE_ERRORS = (
    KeyError, ValueError, TypeError, AttributeError, OSError, SyntaxError, zipfile.BadZipFile, av.error.FFmpegError,
)  # fmt: skip


class BrokenClip(InputError):
    """A damaged or invalid clip or shard."""


def pack(sample: ClipSample) -> dict[str, bytes]:
    """The files of a clip by extension; deterministic.

    Raises:
        InputError: `measured` is not JSON-serializable.
    """
    members = {"mp4": _video(sample.frames, sample.fps), "masks.npz": _masks(sample.masks)}
    for k, portrait in enumerate(sample.portraits):
        members[f"portrait{k}.png"] = _png(portrait)
    if sample.speeches.shape[1]:
        for m, speech in enumerate(sample.speeches):
            members[f"speech{m}.wav"] = _wav(speech)
    extra = {"speech": sample.speech_features, "mouths": sample.mouths}
    if any(array is not None for array in extra.values()):
        members["features.safetensors"] = save(
            {name: np.ascontiguousarray(array) for name, array in extra.items() if array is not None}
        )
    header = {
        "format": FORMAT,
        "frames": len(sample.frames),
        "height": sample.frames.shape[1],
        "width": sample.frames.shape[2],
        "fps": float(sample.fps),
        "characters": len(sample.masks),
        "speeches": list(sample.speeches.shape),
        "caption": sample.caption,
        "matrix": sample.matrix.tolist(),
        "matrix_dtype": sample.matrix.dtype.name,
        "measured": sample.measured,
        "sha256": {extension: hashlib.sha256(content).hexdigest() for extension, content in members.items()},
    }
    try:
        text = json.dumps(header, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        problem, expected = f"`measured` of clip {sample.key!r} cannot be stored ({error})", "finite JSON values"
        raise InputError(problem, expected, "remove the value or use None") from error
    return {"json": text.encode(), **members}


def with_voices(members: Mapping[str, bytes], speeches: np.ndarray) -> dict[str, bytes]:
    """The files of a clip with other voices [M, samples] and without files that its JSON does not list."""
    header = json.loads(members["json"])
    changed = {extension: members[extension] for extension in header["sha256"]}
    header["speeches"] = list(speeches.shape)
    for m, speech in enumerate(speeches if speeches.shape[1] else ()):
        changed[f"speech{m}.wav"] = _wav(speech)
        header["sha256"][f"speech{m}.wav"] = hashlib.sha256(changed[f"speech{m}.wav"]).hexdigest()
    return {"json": json.dumps(header, ensure_ascii=False).encode(), **changed}


def check_header(header: Any) -> None:
    """Raise ValueError, KeyError or TypeError for JSON that does not have this format; fill in what is optional."""
    header.setdefault("matrix_dtype", "int64")
    header.setdefault("measured", {})
    if header["format"] > FORMAT:
        raise ValueError(f"it has format {header['format']}, this version supports up to {FORMAT}")
    streams, samples = header["speeches"]
    sizes = [header[name] for name in ("frames", "height", "width", "characters")]
    if not 0 <= streams * samples <= MAX_SAMPLES:
        raise ValueError(f"its speeches have {streams} x {samples} samples")
    if any(type(size) is not int or size < 1 for size in sizes) or not 0 < float(header["fps"]) < 1e4:
        raise ValueError(f"its sizes are {sizes} at {header['fps']} fps")
    if not isinstance(header["caption"], str) or not isinstance(header["measured"], dict):
        raise ValueError("its caption is not a string, or `measured` not an object")
    np.array(header["matrix"], float).reshape(streams, header["characters"])
    required = {"mp4", "masks.npz", *(f"portrait{k}.png" for k in range(header["characters"]))}
    required |= {f"speech{m}.wav" for m in range(streams if samples else 0)}
    if prefixed := sorted(name for name in header["sha256"] if name.partition(".")[2] in required):
        raise ValueError(f"its sha256 has the key {prefixed[0]!r}, not the extension {prefixed[0].partition('.')[2]!r}")
    if missing := sorted(required - header["sha256"].keys()):
        raise ValueError(f"it has no {' and no '.join(missing)}")


def unpack(key: str, members: Mapping[str, bytes]) -> ClipSample:
    """Reconstruct a clip from its files.

    Raises:
        BrokenClip: a file is missing, damaged or inconsistent.
    """
    try:
        header = json.loads(members["json"])
        check_header(header)
        for extension, digest in header["sha256"].items():
            if hashlib.sha256(members[extension]).hexdigest() != digest:
                raise ValueError(f"its {extension} is damaged")
        size = header["height"], header["width"]
        streams, samples = header["speeches"]
        speeches = np.zeros((streams, samples), np.float32)
        for m in range(streams if samples else 0):
            stream = _from_wav(members[f"speech{m}.wav"])
            if stream.shape != (samples,):
                raise ValueError(f"its speech{m}.wav has the shape {stream.shape}, not {samples} mono samples")
            speeches[m] = stream
        extra = load(members["features.safetensors"]) if "features.safetensors" in members else {}
        return ClipSample(
            key=key,
            frames=_from_video(members["mp4"], (header["frames"], *size)),
            fps=header["fps"],
            speeches=speeches,
            masks=_from_masks(members["masks.npz"]),
            portraits=tuple(_from_png(members[f"portrait{k}.png"]) for k in range(header["characters"])),
            caption=header["caption"],
            matrix=np.array(header["matrix"], header["matrix_dtype"]).reshape(streams, header["characters"]),
            measured=header["measured"],
            speech_features=extra.get("speech"),
            mouths=extra.get("mouths"),
        )
    except DECODE_ERRORS as error:
        reason = f"it has no {error.args[0]}" if isinstance(error, KeyError) and error.args else error
        problem = f"clip {key!r} cannot be read ({reason})"
        raise BrokenClip(problem, "the files docs/reference/shards.md lists", "write it again or skip it") from error


def _plain(value: Any) -> Any:
    """Convert numpy values for JSON."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


def _video(frames: np.ndarray, fps: float) -> bytes:
    """Encode with `write_video` (H.264, CRF 16, 4:2:0); odd sizes are padded by the last row or column."""
    odd = [(0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    even = (np.pad(frame, odd, mode="edge") if any(frames.shape[k] % 2 for k in (1, 2)) else frame for frame in frames)
    with temporary_folder() as folder:
        path = folder / "clip.mp4"
        write_video(path, even, fps, preset="veryfast")
        return path.read_bytes()


def _from_video(content: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    frames, height, width = shape
    with av.open(io.BytesIO(content), "r", format="mp4") as container:
        decoded = islice(container.decode(video=0), frames + 1)  # whatever the file claims
        images = [image.to_ndarray(format="rgb24")[:height, :width] for image in decoded]
    video = np.stack(images) if images else np.zeros((0, height, width, 3), np.uint8)
    if video.shape != (frames, height, width, 3):
        raise ValueError(f"its video is {video.shape}, not {frames} frames of {height}x{width}")
    return video


def _masks(masks: np.ndarray) -> bytes:
    """Pack rows to bits and store the differences between consecutive frames."""
    bits = np.packbits(masks, axis=-1)
    bits[:, 1:] ^= bits[:, :-1].copy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, changes=bits, width=masks.shape[-1])
    return buffer.getvalue()


def _from_masks(content: bytes) -> np.ndarray:
    arrays = load_arrays(io.BytesIO(content), ("changes", "width"))
    bits = np.bitwise_xor.accumulate(arrays["changes"], axis=1)
    return np.unpackbits(bits, axis=-1, count=int(arrays["width"])).astype(bool)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)  # 4 times faster than the default, 20% larger
    return buffer.getvalue()


def _from_png(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"a portrait has {image.width}x{image.height} pixels")
        return np.array(image.convert("RGB"))


def _wav(speech: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    wavfile.write(buffer, SAMPLE_RATE, speech)
    return buffer.getvalue()


def _from_wav(content: bytes) -> np.ndarray:
    rate, speech = wavfile.read(io.BytesIO(content))
    if rate != SAMPLE_RATE or speech.dtype != np.float32:
        raise ValueError(f"an audio stream is {speech.dtype} at {rate} Hz, not float32 at {SAMPLE_RATE}")
    return speech
