"""Stage 8: which pixels are whose, from the face boxes of the first frame (sec. 4.2: SAM 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from bya_core.encoders.face.matching import people
from bya_core.encoders.segmentation import Segmenter
from bya_core.errors import InputError
from bya_core.evaluation.mask_metrics import iou
from bya_core.grid import TokenGrid
from training.curation.crops import boxes_in, clip_frames, work_size
from training.curation.models import ModelChoice, model_of
from training.curation.record import Record
from training.curation.stage import Resources, Unusable


@dataclass(frozen=True)
class MaskSettings:
    """How masks are made and checked.

    Args:
        segmenter: the model.
        prompt: "face" = the face box as it is found; "body" = head, shoulders and chest around it.
        longest: pixels of the longer side of what the model sees.
        on_face: least share of every face box (mean over the clip) that its mask covers.
        elsewhere: largest IoU of two characters' masks.
    """

    segmenter: ModelChoice = ModelChoice("sam2")
    prompt: Literal["face", "body"] = "body"
    longest: int = 1280
    on_face: float = 0.5
    elsewhere: float = 0.2

    def __post_init__(self) -> None:
        if self.prompt not in ("face", "body"):
            raise InputError(f"masks from a {self.prompt!r}", '"face" or "body"', "change the recipe")


class Masks:
    """Masks [N,F,H,W] at the size that the model saw; a clip whose masks lose their faces is dropped."""

    name = "masks"
    version = 1

    def __init__(self, settings: MaskSettings, resources: Resources) -> None:
        self.settings, self.resources = settings, resources

    def prepare(self) -> None:
        """Build the model. Raises InputError where it cannot be."""
        model_of("segmenter", self.settings.segmenter)

    def __call__(self, record: Record) -> list[Record]:
        segmenter: Segmenter = model_of("segmenter", self.settings.segmenter)
        size = work_size(record, self.settings.longest)
        frames, boxes = clip_frames(record, size), boxes_in(record, size)
        prompts = torch.from_numpy(boxes[:, 0]).float()
        if self.settings.prompt == "body":
            prompts = people(prompts)
        prompts = prompts.clamp(min=0)
        prompts = torch.minimum(prompts, torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float32))
        masks = segmenter.segment(torch.from_numpy(frames.copy()), prompts).cpu().numpy() > 0.5
        if masks.shape != (len(boxes), *frames.shape[:3]):
            raise Unusable(f"the segmenter gave masks {masks.shape} for {len(boxes)} people in {frames.shape[:3]}")
        cover = face_cover(masks, boxes)
        pairs = [(a, b) for a in range(len(masks)) for b in range(a)]
        overlap = max((float(np.nan_to_num(iou(masks[a], masks[b])).max()) for a, b in pairs), default=0.0)
        area = masks.mean(axis=(1, 2, 3))
        seen = record.with_data(
            mask_on_face=[round(float(v), 4) for v in cover],
            mask_area=[round(float(v), 4) for v in area],
            mask_overlap=round(overlap, 4),
        )
        if cover.min() < self.settings.on_face:
            least = f"at least {self.settings.on_face:g}"
            return [seen.reject(f"a mask lost its face: it covers {cover.min():.2f} of it, {least}")]
        if overlap > self.settings.elsewhere:
            return [seen.reject(f"masks of two people overlap: IoU {overlap:.2f}, at most {self.settings.elsewhere:g}")]
        return [seen.with_arrays(masks=masks)]


def face_cover(masks: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[N]: share of the inner half of each face box that its mask covers, mean over frames."""
    height, width = masks.shape[2:]
    shares = np.zeros(boxes.shape[:2])
    for n, track in enumerate(boxes):
        for f, (x0, y0, x1, y1) in enumerate(track):
            left, right = int(np.clip(x0 + (x1 - x0) / 4, 0, width - 1)), int(np.clip(x1 - (x1 - x0) / 4, 1, width))
            top, low = int(np.clip(y0 + (y1 - y0) / 4, 0, height - 1)), int(np.clip(y1 - (y1 - y0) / 4, 1, height))
            part = masks[n, f, top : max(low, top + 1), left : max(right, left + 1)]
            shares[n, f] = part.mean() if part.size else 0.0
    return shares.mean(axis=1)


def token_masks(masks: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Masks [N,F,H,W] on the latent and on the token grid of CogVideoX, float32 shares in 0..1.

    Returns:
        latent [N,T,H/8,W/8] and token [N,T,h,w].

    Raises:
        InputError: a size or length that the video codec cannot take.
    """
    small = torch.from_numpy(masks)
    token = TokenGrid.from_pixels(masks.shape[1], *size)
    latent = TokenGrid.from_pixels(masks.shape[1], *size, patch=1)
    return {"latent": latent.pixels_to_tokens(small).numpy(), "token": token.pixels_to_tokens(small).numpy()}
