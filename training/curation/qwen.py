"""Captions by the Qwen2-VL family of transformers, or any of its image-text-to-text models with a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bya_core.errors import InputError

PROMPT = (
    "These are frames of one video, in order. {people} Describe in one paragraph of at most 100 words the place, who "
    "is where in the picture, what each person looks like and does, and who speaks and who listens. Write plain "
    "statements about what is visible; do not guess names, do not mention frames, and do not describe sounds."
)
_LONGEST = 220  # tokens of an answer


class QwenCaptioner:
    """`Captioner` by a vision-language model.

    Args:
        weights: a folder, or the name of a repository in the Hugging Face cache. Nothing is downloaded.
        device, dtype: where and in what it computes.

    Raises:
        InputError: no weights on this machine.
    """

    def __init__(self, weights: str, device: str = "cpu", dtype: str = "bfloat16") -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        place = str(Path(weights).expanduser()) if Path(weights).expanduser().is_dir() else weights
        try:
            processor = AutoProcessor.from_pretrained(place, local_files_only=True)
            model = AutoModelForImageTextToText.from_pretrained(
                place, local_files_only=True, dtype=getattr(torch, dtype)
            )
        except (OSError, ValueError) as error:
            came = f"no captioner {weights} on this machine"
            do = "hf download Qwen/Qwen2-VL-7B-Instruct (16.6 GB, Apache-2.0), or the 2B model (4.4 GB)"
            raise InputError(came, "a folder of weights, or a name in the Hugging Face cache", do) from error
        self.use(model.to(device).eval(), processor)

    def use(self, model: Any, processor: Any) -> None:
        """Take these."""
        self.model, self.processor = model, processor

    @classmethod
    def of(cls, model: Any, processor: Any) -> QwenCaptioner:
        """Around a model that is there already."""
        made = cls.__new__(cls)
        made.use(model.eval(), processor)
        return made

    @torch.no_grad()
    def caption(self, frames: np.ndarray, boxes: np.ndarray, speaks: Sequence[bool]) -> str:
        """See `Captioner`. Greedy, so that the same clip gets the same words."""
        content: list[dict[str, Any]] = [{"type": "image", "image": Image.fromarray(frame)} for frame in frames]
        content.append({"type": "text", "text": PROMPT.format(people=people(boxes, speaks))})
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        made = self.model.generate(**inputs, max_new_tokens=_LONGEST, do_sample=False)
        answer = made[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(answer, skip_special_tokens=True)[0].strip()


def people(boxes: np.ndarray, speaks: Sequence[bool]) -> str:
    """What is known for sure: "2 people are seen: from left to right, the first speaks, the second listens." """
    order = np.argsort(boxes[0, :, [0, 2]].mean(axis=0))
    names = ("first", "second", "third", "fourth", "fifth", "sixth")
    if len(order) == 1:
        return f"One person is seen, who {'speaks' if speaks[0] else 'listens'}."
    told = [
        f"the {names[place] if place < len(names) else f'{place + 1}th'} {'speaks' if speaks[n] else 'listens'}"
        for place, n in enumerate(order)
    ]
    return f"{len(order)} people are seen: from left to right, {', '.join(told)}."
