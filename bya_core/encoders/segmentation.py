"""Who covers which pixels of a video: what a segmenter must do, and SAM 2 of transformers behind it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bya_core.errors import InputError

SAM2_WEIGHTS = "facebook/sam2.1-hiera-tiny"


@runtime_checkable
class Segmenter(Protocol):
    """Follows people through a video, from a box in its first frame."""

    def segment(self, frames: Tensor, boxes: Tensor) -> Tensor:
        """Masks of N people.

        Args:
            frames: uint8 [F, H, W, 3].
            boxes: [N, 4] in pixels of frame 0, x0 y0 x1 y1.

        Returns:
            [N, F, H, W] in 0..1.
        """
        ...


class Sam2Segmenter:
    """SAM 2 (arXiv 2408.00714), the video model of transformers.

    Args:
        model: `Sam2VideoModel`.
        processor: `Sam2VideoProcessor` of the same weights.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @torch.no_grad()
    def segment(self, frames: Tensor, boxes: Tensor) -> Tensor:
        """See `Segmenter`; masks of zeros and ones, and where two people claim a pixel, the surer one has it.

        Raises:
            InputError: boxes of another shape.
        """
        if boxes.ndim != 2 or boxes.shape[0] < 1 or boxes.shape[1] != 4:
            came = f"boxes of shape {tuple(boxes.shape)}"
            raise InputError(came, "one row x0, y0, x1, y1 for each character", "give boxes of the first frame")
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
    """[N, H, W] -> zeros and ones: a pixel is of the one who claims it most, if anybody does."""
    best = logits.amax(dim=0, keepdim=True)
    first = (logits == best).cumsum(0) == 1  # of equal claims the first one counts
    return ((logits == best) & first & (logits > 0)).float()


@lru_cache(maxsize=1)
def load_sam2(weights: str = SAM2_WEIGHTS, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Sam2Segmenter:
    """SAM 2 from this machine; nothing is downloaded. The last one loaded is kept.

    Args:
        weights: a folder of transformers weights, or the name of a repository that lies in the Hugging Face cache.
        device, dtype: where and in what it computes.

    Raises:
        InputError: transformers without SAM 2, without torchvision beside it, or no weights on this machine.
    """
    model_class, processor_class = _sam2_classes()
    folder = _folder(weights)
    try:
        if folder is None:
            raise OSError(f"{weights} is not here")
        model = model_class.from_pretrained(folder, local_files_only=True, dtype=dtype)
        processor = processor_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        came = f"the segmenter SAM 2 has no usable weights on this machine ({weights})"
        do = f'download them (hf download {SAM2_WEIGHTS}), or choose the segmenter "self", which needs none'
        raise InputError(came, "a folder with them, or a name in the Hugging Face cache", do) from error
    return Sam2Segmenter(model.to(device), processor)


def _folder(weights: str) -> Path | None:
    """Where they lie: a folder, or what the Hugging Face cache holds under that name. Asks no network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(weights).expanduser().is_dir():
        return Path(weights).expanduser()
    try:
        config = try_to_load_from_cache(weights, "config.json")
    except HFValidationError:  # no name of a repository
        return None
    return Path(config).parent if isinstance(config, str) else None


def _sam2_classes() -> tuple[Any, Any]:
    try:
        import torchvision  # noqa: F401 - its processor cannot work without
        from transformers import Sam2VideoModel, Sam2VideoProcessor
    except (ImportError, RuntimeError) as error:
        came = f"the segmenter SAM 2 cannot be used here ({error})"
        do = 'install transformers>=4.56 and torchvision, or choose the segmenter "self", which needs neither'
        raise InputError(came, "transformers with SAM 2, and torchvision", do) from error
    return Sam2VideoModel, Sam2VideoProcessor
