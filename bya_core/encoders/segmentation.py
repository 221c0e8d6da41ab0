"""Video segmentation: the `Segmenter` Protocol and SAM 2 of transformers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bya_core.config import SAM2_WEIGHTS
from bya_core.errors import InputError


@runtime_checkable
class Segmenter(Protocol):
    """Segments people in a video from boxes in its first frame."""

    def segment(self, frames: Tensor, boxes: Tensor) -> Tensor:
        """Masks of N people.

        Args:
            frames: uint8 [F, H, W, 3].
            boxes: Boxes [N, 4] (x0, y0, x1, y1) in pixels of the first frame.

        Returns:
            [N, F, H, W] in [0, 1].
        """
        ...


class Sam2Segmenter:
    """SAM 2 video model (https://arxiv.org/abs/2408.00714).

    Args:
        model: A `Sam2VideoModel`.
        processor: The `Sam2VideoProcessor` of the same weights.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @torch.no_grad()
    def segment(self, frames: Tensor, boxes: Tensor) -> Tensor:
        """See `Segmenter`. Masks are binary; contested pixels go to the larger logit.

        Raises:
            InputError: If `boxes` has another shape.
        """
        if boxes.ndim != 2 or boxes.shape[0] < 1 or boxes.shape[1] != 4:
            problem = f"boxes of shape {tuple(boxes.shape)}"
            raise InputError(problem, "one row (x0, y0, x1, y1) per character", "pass boxes of the first frame")
        device, dtype = self.model.device, self.model.dtype
        size = (int(frames.shape[1]), int(frames.shape[2]))
        session = self.processor.init_video_session(
            video=[frame.numpy() for frame in frames.cpu()],
            inference_device=device,
            video_storage_device="cpu",
            dtype=dtype,
        )
        self.processor.add_inputs_to_inference_session(
            inference_session=session,
            frame_idx=0,
            obj_ids=list(range(boxes.shape[0])),
            input_boxes=[boxes.float().tolist()],
            original_size=size,
        )
        masks = []
        for output in self.model.propagate_in_video_iterator(session, start_frame_idx=0):
            logits = self.processor.post_process_masks([output.pred_masks.float()], [size], binarize=False)[0]
            masks.append(_exclusive(logits[:, 0]).cpu())
        return torch.stack(masks, dim=1)


def _exclusive(logits: Tensor) -> Tensor:
    """Binary masks [N, H, W]: each pixel belongs to the largest positive logit, if any."""
    best = logits.amax(dim=0, keepdim=True)
    first = (logits == best).cumsum(0) == 1  # ties go to the first
    return ((logits == best) & first & (logits > 0)).float()


@lru_cache(maxsize=1)
def load_sam2(weights: str = SAM2_WEIGHTS, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Sam2Segmenter:
    """Load SAM 2 from this machine, without downloading; the last model loaded is cached.

    Args:
        weights: A folder of transformers weights, or a repository in the Hugging Face cache.
        device: Device to run on.
        dtype: Data type of the weights.

    Raises:
        InputError: If SAM 2, torchvision or the weights are missing.
    """
    model_class, processor_class = _sam2_classes()
    folder = _folder(weights)
    try:
        if folder is None:
            raise OSError(f"{weights} was not found")
        model = model_class.from_pretrained(folder, local_files_only=True, dtype=dtype)
        processor = processor_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        problem = f"the segmenter SAM 2 has no usable weights on this machine ({weights})"
        hint = 'run `bya download official --components segmenter`, or choose the segmenter "self", which needs none'
        raise InputError(problem, "a folder with them, or a name in the Hugging Face cache", hint) from error
    return Sam2Segmenter(model.to(device), processor)


def _folder(weights: str) -> Path | None:
    """Folder of the weights: a path or an entry of the Hugging Face cache. Makes no network request."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(weights).expanduser().is_dir():
        return Path(weights).expanduser()
    try:
        config = try_to_load_from_cache(weights, "config.json")
    except HFValidationError:  # not a repository name
        return None
    return Path(config).parent if isinstance(config, str) else None


def _sam2_classes() -> tuple[Any, Any]:
    try:
        import torchvision  # noqa: F401 - required by the processor
        from transformers import Sam2VideoModel, Sam2VideoProcessor
    except (ImportError, RuntimeError) as error:
        problem = f"the segmenter SAM 2 cannot be used here ({error})"
        hint = 'install transformers>=4.56 and torchvision, or choose the segmenter "self", which needs neither'
        raise InputError(problem, "transformers with SAM 2, and torchvision", hint) from error
    return Sam2VideoModel, Sam2VideoProcessor
