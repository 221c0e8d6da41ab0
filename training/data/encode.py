"""Clips through the encoders of a model: the one place where training data becomes tensors.

Every part is kept by itself in a feature cache: the video of each view, the text, each face, each voice (whole, so
that views share it), the canvas of all faces, the masks. A clip whose parts are all kept is never decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
from training.data.buckets import Cut, Fit, View, at_rate, find_cut, fit_frames, needs_cut, resampled, silence
from training.data.cache import FeatureCache, Tensors, digest_of, version_of
from training.data.clip import ClipSample

FPS = 25.0  # of all models of this family: their speech features come 25 times a second
CODE = 1  # raised when this file makes other tensors of the same clip
SMALL = 1 << 20  # numbers in a video
MOUTH = (1.8, 1.5)  # width and height of the emphasis around a mouth, in latent cells of a video 16 cells high


class Encoders(Protocol):
    """The frozen networks of a model (a `ModelBundle` has them too)."""

    @property
    def text(self) -> TextEncoder: ...
    @property
    def face(self) -> FaceEncoder: ...
    @property
    def speech(self) -> SpeechEncoder: ...
    @property
    def codec(self) -> VideoCodec: ...


@dataclass(frozen=True)
class Content:
    """What a clip is made of, known before it is decoded.

    Args:
        head: `frames`, `height`, `width`, `fps`, `characters`, `speeches` ([M,S]), `caption`, `matrix`, `measured`.
        digests: of each of its files, by the endings that `training.data.shards.members` uses.
        load: decodes it.
    """

    key: str
    head: Mapping[str, Any]
    digests: Mapping[str, str]
    load: Callable[[], ClipSample]


def content_of(sample: ClipSample) -> Content:
    """The content of a clip that is in memory."""
    head = {
        "frames": len(sample.frames), "height": sample.frames.shape[1], "width": sample.frames.shape[2],
        "fps": sample.fps, "characters": len(sample.masks), "speeches": list(sample.speeches.shape),
        "caption": sample.caption, "matrix": sample.matrix.tolist(), "measured": sample.measured,
    }  # fmt: skip
    digests = {"mp4": digest_of(sample.frames), "masks.npz": digest_of(sample.masks)}
    digests |= {f"portrait{k}.png": digest_of(portrait) for k, portrait in enumerate(sample.portraits)}
    digests |= {f"speech{m}.wav": digest_of(speech) for m, speech in enumerate(sample.speeches) if len(speech)}
    if sample.speech_features is not None or sample.mouths is not None:
        digests["features.safetensors"] = digest_of(sample.speech_features, sample.mouths)
    return Content(sample.key, head, digests, lambda: sample)


class ClipEncoder:
    """Makes the tensors of one clip, as `training/data/dataset.py` documents them without the leading axis.

    Args:
        encoders: of the model that is trained.
        cache: where features are kept.
        patch: latent cells per token and side.
        fit: how pictures are brought to the shape of a bucket.
        device: where the encoders run.
        canvas: how portraits stand on the canvas (`encoders.canvas`): "released" for models of the official flavour.
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

    def grid(self, view: View) -> TokenGrid:
        """The token grid of a view. Raises InputError where its bucket does not fit the model."""
        codec, bucket = self.encoders.codec, view.bucket
        return TokenGrid.from_pixels(
            bucket.frames, bucket.height, bucket.width,
            patch=self.patch, space_factor=codec.space_factor, time_factor=codec.time_factor,
        )  # fmt: skip

    @torch.no_grad()
    def encode(self, clip: Content, view: View) -> Tensors:
        """All tensors of a clip.

        Raises:
            InputError: a portrait without a face, a clip without voices, or what cannot be decoded.
        """
        load = cache(lambda: at_rate(clip.load(), FPS))
        grid = self.grid(view)
        faces = [self._face(clip, k, load) for k in range(clip.head["characters"])]
        return {
            **self._video(clip, view, load),
            "canvas": self._canvas(clip, view, faces),
            "text": self._text(clip),
            **self._masks(clip, view, grid, load),
            "identity": torch.stack([face["identity"] for face in faces]),
            "hidden": torch.stack([face["hidden"] for face in faces]),
            "speech": self._speech(clip, view, load),
            "seed": torch.tensor(clip_seed(clip)),
        }

    @torch.no_grad()
    def first_frame(self, clip: Content, view: View) -> Tensor:
        """The first picture of a view alone, [C,H,W]."""
        bucket = replace(view.bucket, frames=1)
        return self._video(clip, replace(view, bucket=bucket), cache(lambda: at_rate(clip.load(), FPS)))["first_frame"]

    def version(self, part: str) -> str:
        """What the features of one encoder ("text", "face", "speech", "codec") depend on."""
        if part not in self._versions:
            self._versions[part] = version_of(getattr(self.encoders, part))
        return self._versions[part]

    def _video(self, clip: Content, view: View, load: Callable[[], ClipSample]) -> Tensors:
        def make() -> Tensors:
            sample = load()
            cut = self._cut(sample, view)
            shown = sample.frames[view.start : view.start + view.bucket.frames]
            video = fit_frames(shown, cut, view.bucket).to(self.device)
            return {"latents": self._latents(video), "first_frame": self._latents(video[:, :, :1])[0]}

        key = (CODE, self.version("codec"), clip.digests["mp4"], *self._place(clip, view))
        return self.cache.get("video", key, make)

    def _latents(self, video: Tensor) -> Tensor:
        """[1,3,F,height,width] in -1..1 -> [T,C,H,W] half. Clips go one by one: a batch must not change its clips."""
        twice = video.device.type == "cpu" and video.numel() < SMALL
        # for one small clip torch takes another convolution, which is slower than two clips by the usual one
        return self.encoders.codec.encode(torch.cat([video, video]) if twice else video)[0].half()

    def _cut(self, sample: ClipSample, view: View) -> Cut:
        _, height, width, _ = sample.frames.shape
        return find_cut(height, width, view.bucket, self.fit, sample.masks)

    def _place(self, clip: Content, view: View) -> tuple[Any, ...]:
        """What the pixels of a view depend on, besides the video."""
        bucket = view.bucket
        cut = needs_cut(clip.head["height"], clip.head["width"], bucket)
        by = (self.fit, clip.digests["masks.npz"] if self.fit == "cover" else "") if cut else ()
        return view.start, bucket.frames, bucket.height, bucket.width, clip.head["fps"], *by

    def _masks(self, clip: Content, view: View, grid: TokenGrid, load: Callable[[], ClipSample]) -> Tensors:
        def make() -> Tensors:
            sample = load()
            cut = self._cut(sample, view)
            span = slice(view.start, view.start + view.bucket.frames)
            seen = cut.of(torch.from_numpy(sample.masks[:, span]))
            mouths = None if sample.mouths is None else sample.mouths[:, span] - (cut.left, cut.top)
            if mouths is not None:
                mouths = mouths * (view.bucket.width / cut.width, view.bucket.height / cut.height)
            return {
                "masks": (grid.pixels_to_tokens(seen) * 255.0).round().to(torch.uint8),
                "emphasis": mouth_emphasis(seen, mouths, grid),
            }

        digests = clip.digests["masks.npz"], clip.digests.get("features.safetensors", "")
        shape = self.patch, grid.space_factor, grid.time_factor
        key = (CODE, *digests, clip.head["height"], clip.head["width"], *shape, *self._place(clip, view))
        return self.cache.get("masks", key, make)

    def _text(self, clip: Content) -> Tensor:
        key = (CODE, self.version("text"), clip.head["caption"])
        made = self.cache.get(
            "text", key, lambda: {"text": self.encoders.text.encode([clip.head["caption"]])[0].half()}
        )
        return made["text"]

    def _face(self, clip: Content, k: int, load: Callable[[], ClipSample]) -> Tensors:
        def make() -> Tensors:
            picture = torch.from_numpy(load().portraits[k]).permute(2, 0, 1).float() / 255.0
            face = self.encoders.face.encode(picture.to(self.device))
            return {"identity": face.identity.half(), "hidden": face.hidden.half(), "portrait": face.portrait.half()}

        return self.cache.get("face", (CODE, self.version("face"), clip.digests[f"portrait{k}.png"]), make)

    def _canvas(self, clip: Content, view: View, faces: list[Tensors]) -> Tensor:
        def make() -> Tensors:
            size = view.bucket.height, view.bucket.width
            canvas = reference_canvas([face["portrait"].float() for face in faces], *size, self.canvas)
            return {"canvas": self._latents(canvas[None, :, None].to(self.device) * 2.0 - 1.0)[0]}

        who = [clip.digests[f"portrait{k}.png"] for k in range(len(faces))]
        size = view.bucket.height, view.bucket.width
        key = (CODE, self.version("codec"), self.version("face"), self.canvas, *size, *who)
        return self.cache.get("canvas", key, make)["canvas"]

    def _speech(self, clip: Content, view: View, load: Callable[[], ClipSample]) -> Tensor:
        """[N,F+4,blocks,channels]: stream k belongs to character k; who has no voice hears encoded silence."""
        matrix = np.asarray(clip.head["matrix"], float).reshape(clip.head["speeches"][0], clip.head["characters"])
        voices = []
        for k in range(matrix.shape[1]):
            own = np.flatnonzero(matrix[:, k] > 0.5)
            if len(own) > 1:
                came = f"clip {clip.key!r} with {len(own)} voices for character {k}"
                raise InputError(came, "at most one for each character", "mix them first")
            whole = self._voice(clip, int(own[0]), load) if len(own) else self._silence(clip)
            voices.append(whole[view.start : view.start + view.bucket.frames + 4])
        return torch.stack(voices)

    def _voice(self, clip: Content, m: int, load: Callable[[], ClipSample]) -> Tensor:
        """[F+4,blocks,channels] of a whole voice: by the encoder, or as stored where that is all there is."""
        stored = clip.head["measured"].get("speech_encoder")
        if stored == self.version("speech") or not clip.head["speeches"][1]:
            features = load().speech_features
            if features is not None:
                return torch.from_numpy(features[m]).half()
            if not clip.head["speeches"][1]:
                came = f"clip {clip.key!r} with neither voices nor their features at {FPS:g} frames a second"
                raise InputError(came, "one of them", "write it with its voices")
        key = (CODE, self.version("speech"), clip.digests[f"speech{m}.wav"], self._frames(clip))
        return self._heard(key, lambda: load().speeches[m], clip)

    def _silence(self, clip: Content) -> Tensor:
        frames = self._frames(clip)
        key = (CODE, self.version("speech"), "silence", frames)
        return self._heard(key, lambda: silence(frames, FPS), clip)

    def _heard(self, key: tuple[Any, ...], voice: Callable[[], np.ndarray], clip: Content) -> Tensor:
        def make() -> Tensors:
            heard = torch.from_numpy(voice()).to(self.device)
            return {"speech": self.encoders.speech.encode(heard, self._frames(clip)).half()}

        return self.cache.get("speech", key, make)["speech"]

    def _frames(self, clip: Content) -> int:
        return resampled(clip.head["frames"], clip.head["fps"], FPS)


def mouth_emphasis(masks: Tensor, mouths: np.ndarray | None, grid: TokenGrid) -> Tensor:
    """[T,H,W] uint8: 255 at visible mouths, falling off over half a head; zeros where mouths are not known.

    Args:
        masks: [N,F,rows,columns] of the pixels shown, any resolution.
        mouths: [N,F,2] in pixels of the bucket; NaN where one is not seen.
    """
    height, width = grid.height * grid.patch, grid.width * grid.patch
    total = torch.zeros(masks.shape[1], height, width)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    wide, high = (spread * height / 16 for spread in MOUTH)
    for mask, places in zip(masks, [] if mouths is None else torch.from_numpy(mouths).float(), strict=False):
        seen = F.adaptive_avg_pool2d(mask[:, None].float(), (height, width))[:, 0]
        dx = x - places[:, 0, None, None] / grid.space_factor
        dy = y - places[:, 1, None, None] / grid.space_factor
        near = torch.exp(-(dx**2 / (2 * wide**2) + dy**2 / (2 * high**2)))
        total = torch.maximum(total, torch.nan_to_num(near) * seen)
    return (grid.frames_to_latent(total, dim=0) * 255.0).round().to(torch.uint8)


def clip_seed(clip: Content) -> int:
    """A number for the clip: the one that was measured, or one from its key."""
    seed = clip.head["measured"].get("seed")
    return seed if type(seed) is int else int(digest_of(clip.key)[:15], 16)


def load_encoders(name: str | Path = "toy") -> Encoders:
    """The encoders of a model, without its transformer where that is large.

    Args:
        name: of the registry (toy, official), a folder with vae, face.safetensors and speech.safetensors, one laid out
            as the released model, or anything else that `load_bundle` takes.

    Raises:
        InputError: no such model, or its weights are not here.
    """
    from bya_core.weights.loader import load_bundle
    from bya_core.weights.registry import MODELS

    entry = MODELS.get(str(name))
    folder = Path(name).expanduser() if entry is None else entry.path
    if (folder / "speech.safetensors").is_file():
        from bya_core.toy.bundle import load_toy_encoders

        return load_toy_encoders(folder)
    if (folder / "text_encoder").is_dir() or (entry is not None and entry.components):
        from bya_core.weights.official import load_official

        return load_official(folder, transformer=torch.nn.Identity())  # type: ignore[arg-type]
    return load_bundle(name)
