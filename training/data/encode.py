"""Encode clips with the encoders of a model.

The parts of a clip are cached separately: the video of each window, the text, each face, each audio stream (whole, so
that windows share it), the canvas, and the masks. A clip whose parts are all cached is not decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.encoders.canvas import reference_canvas
from bya_core.encoders.domains import CanvasLayout
from bya_core.encoders.protocols import FaceEncoder, SpeechEncoder, TextEncoder, VideoCodec
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.weights.loader import load_bundle
from bya_core.weights.official import load_official
from bya_core.weights.registry import MODELS
from training.data.buckets import Crop, Fit, Window, find_crop, needs_crop, resample_frames, resize_frames
from training.data.cache import FeatureCache, Tensors, encoder_version
from training.data.clip import SAMPLE_RATE, ClipSample, LazyClip

FPS = 25.0  # frame rate of the models, which is also the rate of their speech features
VERSION = 1  # part of all cache keys; incremented when the encoding changes
SMALL_VIDEO = 1 << 20  # elements
MOUTH_SIGMA = (1.8, 1.5)  # width and height of the emphasis around a mouth, in cells of a latent 16 cells high


class Encoders(Protocol):
    """The frozen encoders of a model; a `ModelBundle` is one."""

    @property
    def text(self) -> TextEncoder: ...
    @property
    def face(self) -> FaceEncoder: ...
    @property
    def speech(self) -> SpeechEncoder: ...
    @property
    def codec(self) -> VideoCodec: ...


class ClipEncoder:
    """Encodes single clips to the tensors listed in `training.data.batches`, without the batch axis.

    Args:
        encoders: encoders of the model.
        cache: feature cache.
        patch: patch size of the model.
        fit: how images are fitted to a bucket.
        device: device of the encoders.
        canvas: layout of the reference canvas: "released" for models of the official flavour.
    """

    def __init__(
        self,
        encoders: Encoders,
        cache: FeatureCache | None = None,
        patch: int = 2,
        fit: Fit = "cover",
        device: torch.device | str = "cpu",
        canvas: CanvasLayout = "row",
    ) -> None:
        self.encoders, self.cache, self.patch, self.fit = encoders, cache or FeatureCache(None), patch, fit
        self.device, self.canvas = torch.device(device), canvas
        for part in (encoders.text, encoders.face, encoders.speech, encoders.codec):
            if self.device.type != "cpu" and hasattr(part, "to"):
                part.to(self.device)
        self._versions: dict[str, str] = {}

    def grid(self, window: Window) -> TokenGrid:
        """The token grid of a window. Raises InputError if the bucket is invalid for the model."""
        codec, bucket = self.encoders.codec, window.bucket
        return TokenGrid.from_pixels(
            bucket.frames, bucket.height, bucket.width,
            patch=self.patch, space_factor=codec.space_factor, time_factor=codec.time_factor,
        )  # fmt: skip

    @torch.no_grad()
    def encode(self, clip: LazyClip, window: Window) -> Tensors:
        """All tensors of a window of a clip.

        Raises:
            InputError: a portrait without a face, a clip without speech, or a decoding error.
        """
        load = cache(lambda: resample_frames(clip.load(), FPS))
        grid = self.grid(window)
        faces = [self._face(clip, k, load) for k in range(clip.header["characters"])]
        return {
            **self._video(clip, window, load),
            "canvas": self._canvas(clip, window, faces),
            "text": self._text(clip),
            **self._masks(clip, window, grid, load),
            "identity": torch.stack([face["identity"] for face in faces]),
            "hidden": torch.stack([face["hidden"] for face in faces]),
            "speech": self._speech(clip, window, load),
            "seed": torch.tensor(clip.seed),
        }

    def version(self, part: str) -> str:
        """Version of an encoder ("text", "face", "speech", "codec"), see `encoder_version`."""
        if part not in self._versions:
            self._versions[part] = encoder_version(getattr(self.encoders, part))
        return self._versions[part]

    def _video(self, clip: LazyClip, window: Window, load: Callable[[], ClipSample]) -> Tensors:
        def compute() -> Tensors:
            sample = load()
            crop = self._crop(sample, window)
            frames = sample.frames[window.start : window.start + window.bucket.frames]
            video = resize_frames(frames, crop, window.bucket).to(self.device)
            return {"latents": self._latents(video), "first_frame": self._latents(video[:, :, :1])[0]}

        key = (VERSION, self.version("codec"), clip.digests["mp4"], *self._pixel_key(clip, window))
        return self.cache.get("video", key, compute)

    def _latents(self, video: Tensor) -> Tensor:
        """[1,3,F,height,width] in -1..1 -> [T,C,H,W] float16, one clip at a time for reproducibility."""
        duplicate = video.device.type == "cpu" and video.numel() < SMALL_VIDEO
        # for a single small clip torch selects a convolution that is slower than the usual one on two clips
        return self.encoders.codec.encode(torch.cat([video, video]) if duplicate else video)[0].half()

    def _crop(self, sample: ClipSample, window: Window) -> Crop:
        _, height, width, _ = sample.frames.shape
        return find_crop(height, width, window.bucket, self.fit, sample.masks)

    def _pixel_key(self, clip: LazyClip, window: Window) -> tuple[Any, ...]:
        """What the pixels of a window depend on besides the video."""
        bucket = window.bucket
        crop = needs_crop(clip.header["height"], clip.header["width"], bucket)
        cropping = (self.fit, clip.digests["masks.npz"] if self.fit == "cover" else "") if crop else ()
        return window.start, bucket.frames, bucket.height, bucket.width, clip.header["fps"], *cropping

    def _masks(self, clip: LazyClip, window: Window, grid: TokenGrid, load: Callable[[], ClipSample]) -> Tensors:
        def compute() -> Tensors:
            sample = load()
            crop = self._crop(sample, window)
            span = slice(window.start, window.start + window.bucket.frames)
            visible = crop.apply(torch.from_numpy(sample.masks[:, span]))
            mouths = None if sample.mouths is None else sample.mouths[:, span] - (crop.left, crop.top)
            if mouths is not None:
                mouths = mouths * (window.bucket.width / crop.width, window.bucket.height / crop.height)
            return {
                "masks": (grid.pixels_to_tokens(visible) * 255.0).round().to(torch.uint8),
                "emphasis": mouth_emphasis(visible, mouths, grid),
            }

        digests = clip.digests["masks.npz"], clip.digests.get("features.safetensors", "")
        shape = self.patch, grid.space_factor, grid.time_factor
        key = (VERSION, *digests, clip.header["height"], clip.header["width"], *shape, *self._pixel_key(clip, window))
        return self.cache.get("masks", key, compute)

    def _text(self, clip: LazyClip) -> Tensor:
        key = (VERSION, self.version("text"), clip.header["caption"])
        text = self.encoders.text
        return self.cache.get("text", key, lambda: {"text": text.encode([clip.header["caption"]])[0].half()})["text"]

    def _face(self, clip: LazyClip, k: int, load: Callable[[], ClipSample]) -> Tensors:
        def compute() -> Tensors:
            portrait = torch.from_numpy(load().portraits[k]).permute(2, 0, 1).float() / 255.0
            face = self.encoders.face.encode(portrait.to(self.device))
            return {"identity": face.identity.half(), "hidden": face.hidden.half(), "portrait": face.portrait.half()}

        return self.cache.get("face", (VERSION, self.version("face"), clip.digests[f"portrait{k}.png"]), compute)

    def _canvas(self, clip: LazyClip, window: Window, faces: list[Tensors]) -> Tensor:
        size = window.bucket.height, window.bucket.width

        def compute() -> Tensors:
            canvas = reference_canvas([face["portrait"].float() for face in faces], *size, self.canvas)
            return {"canvas": self._latents(canvas[None, :, None].to(self.device) * 2.0 - 1.0)[0]}

        portraits = [clip.digests[f"portrait{k}.png"] for k in range(len(faces))]
        key = (VERSION, self.version("codec"), self.version("face"), self.canvas, *size, *portraits)
        return self.cache.get("canvas", key, compute)["canvas"]

    def _speech(self, clip: LazyClip, window: Window, load: Callable[[], ClipSample]) -> Tensor:
        """[N,F+4,blocks,channels]: stream k belongs to character k; characters without speech get encoded silence."""
        matrix = np.asarray(clip.header["matrix"], float).reshape(clip.header["speeches"][0], clip.header["characters"])
        streams = []
        for k in range(matrix.shape[1]):
            assigned = np.flatnonzero(matrix[:, k] > 0.5)
            if len(assigned) > 1:
                problem = f"clip {clip.key!r} with {len(assigned)} audio streams for character {k}"
                raise InputError(problem, "at most one per character", "mix them first")
            stream = self._stream(clip, int(assigned[0]), load) if len(assigned) else self._silence(clip)
            streams.append(stream[window.start : window.start + window.bucket.frames + 4])
        return torch.stack(streams)

    def _stream(self, clip: LazyClip, m: int, load: Callable[[], ClipSample]) -> Tensor:
        """Features [F+4,blocks,channels] of a whole stream, stored ones if they are of this encoder."""
        stored = clip.header["measured"].get("speech_encoder")
        if stored == self.version("speech") or not clip.header["speeches"][1]:
            features = load().speech_features
            if features is not None:
                return torch.from_numpy(features[m]).half()
            if not clip.header["speeches"][1]:
                problem = f"clip {clip.key!r} has neither speech nor its features at {FPS:g} fps"
                raise InputError(problem, "one of them", "store the clip with its speech")
        return self._encode_speech(clip, clip.digests[f"speech{m}.wav"], lambda: load().speeches[m])

    def _silence(self, clip: LazyClip) -> Tensor:
        return self._encode_speech(clip, "silence", lambda: np.zeros(round(clip.length(FPS) / FPS * SAMPLE_RATE), "f4"))

    def _encode_speech(self, clip: LazyClip, content: str, waveform: Callable[[], np.ndarray]) -> Tensor:
        """Cached features of a stream that is identified by `content`."""
        frames = clip.length(FPS)

        def compute() -> Tensors:
            audio = torch.from_numpy(waveform()).to(self.device)
            return {"speech": self.encoders.speech.encode(audio, frames).half()}

        return self.cache.get("speech", (VERSION, self.version("speech"), content, frames), compute)["speech"]


def mouth_emphasis(masks: Tensor, mouths: np.ndarray | None, grid: TokenGrid) -> Tensor:
    """[T,H,W] uint8: 255 at visible mouths, decreasing over half a head; zeros for unknown mouths.

    Args:
        masks: character masks [N,F,rows,columns] at any resolution.
        mouths: centers [N,F,2] in pixels of the bucket, NaN where invisible.
        grid: token grid of the window.
    """
    height, width = grid.height * grid.patch, grid.width * grid.patch
    emphasis = torch.zeros(masks.shape[1], height, width)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    wide, high = (spread * height / 16 for spread in MOUTH_SIGMA)
    for mask, centers in zip(masks, [] if mouths is None else torch.from_numpy(mouths).float(), strict=False):
        visible = F.adaptive_avg_pool2d(mask[:, None].float(), (height, width))[:, 0]
        dx = x - centers[:, 0, None, None] / grid.space_factor
        dy = y - centers[:, 1, None, None] / grid.space_factor
        near = torch.exp(-(dx**2 / (2 * wide**2) + dy**2 / (2 * high**2)))
        emphasis = torch.maximum(emphasis, torch.nan_to_num(near) * visible)
    return (grid.frames_to_latent(emphasis, dim=0) * 255.0).round().to(torch.uint8)


def load_encoders(name: str | Path = "toy") -> Encoders:
    """Load the encoders of a model; those of the official model without its transformer, which is large.

    Args:
        name: anything that `load_bundle` accepts, such as toy, official, or a folder in the released layout.

    Raises:
        InputError: unknown model, or missing weights.
    """
    entry = MODELS.get(str(name))
    folder = Path(name).expanduser() if entry is None else entry.path
    if not (folder / "text_encoder").is_dir() and (entry is None or not entry.components):
        return load_bundle(name)
    return load_official(folder, encoders_only=True)
