"""Character masks."""

from __future__ import annotations

import numpy as np

from training.curation.masks import Masks, MaskSettings, face_coverage
from training.curation.models import ModelChoice


def test_face_coverage():
    masks = np.zeros((1, 5, 64, 96), bool)
    masks[:, :, :32] = True
    boxes = np.tile([[[10, 5, 30, 25]], [[10, 40, 30, 60]]], (1, 5, 1))
    assert face_coverage(np.repeat(masks, 2, axis=0), boxes).tolist() == [1.0, 0.0]


def test_sam2(tmp_path, clip):
    from tests.unit.routing import test_post

    small_sam = test_post.sam2.__wrapped__ if hasattr(test_post.sam2, "__wrapped__") else None
    segmenter = (small_sam or test_post.sam2._get_wrapped_function())()
    segmenter.model.save_pretrained(tmp_path)
    segmenter.processor.save_pretrained(tmp_path)
    choice = ModelChoice("sam2", {"weights": str(tmp_path)})
    (result,) = Masks(MaskSettings(choice, min_face_coverage=0.0, max_overlap=1.0, max_side=96))(clip)
    assert result.rejected is None and result.array("masks").shape == (2, 17, 64, 96)
    assert result.data["mask_overlap"] == 0 and len(result.data["mask_area"]) == 2
