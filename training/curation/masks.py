"""Stage "masks": character masks from the face boxes of the first frame (paper sec. 4.2: SAM 2)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from bya_core.encoders.face.matching import body_boxes
from bya_core.encoders.segmentation import Segmenter
from bya_core.evaluation.mask_metrics import iou
from bya_core.validation import validated
from training.curation.footage import clip_boxes, clip_frames, clip_points, model_size
from training.curation.mesh_models import MeshSegmenter
from training.curation.models import ModelChoice, ModelOption
from training.curation.record import Record
from training.curation.stage import Stage, UnusableFootage


@validated
class MaskSettings:
    """Options of segmentation.

    Args:
        segmenter: video segmentation model; "mesh" needs no download, but face meshes (faces.detector: blazeface);
            "none" computes no masks, and no shards can be written.
        prompt: box prompt: "face" = detected face box; "body" = head, shoulders and chest around it.
        max_side: longer side of the model input in pixels; of the input of "mesh", at most 360.
        min_face_coverage: minimum fraction of every face box (mean over the clip) covered by its mask.
        max_overlap: maximum IoU of two masks.
    """

    segmenter: ModelOption = ModelChoice("sam2")
    prompt: Literal["face", "body"] = "body"
    max_side: int = 1280
    min_face_coverage: float = 0.5
    max_overlap: float = 0.2


class Masks(Stage):
    """Computes masks [N,F,H,W] at the resolution of the model; rejects clips whose masks lose their faces."""

    name = "masks"
    version = 2
    models = {"segmenter": "segmenter"}

    def __call__(self, record: Record) -> list[Record]:
        settings: MaskSettings = self.settings
        segmenter: Segmenter | MeshSegmenter | None = self.model("segmenter")
        if segmenter is None:
            return [record]
        size = model_size(record, min(settings.max_side, getattr(segmenter, "max_side", settings.max_side)))
        frames, boxes = clip_frames(record, size), clip_boxes(record, size)
        prompts = torch.from_numpy(boxes[:, 0]).float()
        if settings.prompt == "body":
            prompts = body_boxes(prompts)
        limit = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float32)
        prompts = torch.minimum(prompts.clamp(min=0), limit)
        if isinstance(segmenter, MeshSegmenter):
            masks = segmenter.segment_faces(frames.copy(), boxes, clip_points(record, size))
        else:
            masks = segmenter.segment(torch.from_numpy(frames.copy()), prompts).cpu().numpy() > 0.5
        expected = (len(boxes), *frames.shape[:3])
        if masks.shape != expected:
            raise UnusableFootage(f"invalid segmenter output {masks.shape}, expected {expected}")
        coverage = face_coverage(masks, boxes)
        pairs = [(a, b) for a in range(len(masks)) for b in range(a)]
        overlap = max((float(np.nan_to_num(iou(masks[a], masks[b])).max()) for a, b in pairs), default=0.0)
        record = record.with_data(
            mask_face_coverage=[round(float(v), 4) for v in coverage],
            mask_area=[round(float(v), 4) for v in masks.mean(axis=(1, 2, 3))],
            mask_overlap=round(overlap, 4),
        )
        if coverage.min() < settings.min_face_coverage:
            limit_text = f"at least {settings.min_face_coverage:g}"
            return [record.reject(f"mask does not cover its face: coverage {coverage.min():.2f}, {limit_text}")]
        if overlap > settings.max_overlap:
            return [record.reject(f"masks overlap: IoU {overlap:.2f}, at most {settings.max_overlap:g}")]
        return [record.with_arrays(masks=masks)]


def face_coverage(masks: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Fraction of the inner half of each face box covered by its mask, mean over frames: [N]."""
    height, width = masks.shape[2:]
    coverage = np.zeros(boxes.shape[:2])
    for n, track in enumerate(boxes):
        for f, (x0, y0, x1, y1) in enumerate(track):
            left, right = int(np.clip(x0 + (x1 - x0) / 4, 0, width - 1)), int(np.clip(x1 - (x1 - x0) / 4, 1, width))
            top, bottom = int(np.clip(y0 + (y1 - y0) / 4, 0, height - 1)), int(np.clip(y1 - (y1 - y0) / 4, 1, height))
            region = masks[n, f, top : max(bottom, top + 1), left : max(right, left + 1)]
            coverage[n, f] = region.mean() if region.size else 0.0
    return coverage.mean(axis=1)
