"""Registered models for real footage: thin wrappers around encoders and metrics of bya_core, and a captioner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from bya_core.encoders.face.detection import FaceDetector
from bya_core.encoders.protocols import SpeechEncoder
from bya_core.encoders.segmentation import SAM2_WEIGHTS, Segmenter, load_sam2
from bya_core.errors import InputError
from bya_core.evaluation.identity import cosine_similarity
from bya_core.evaluation.metric_weights import SYNCNET
from bya_core.evaluation.sync_metrics import Sync, shifted_distances, sync_of
from bya_core.evaluation.syncnet import SyncEmbedder
from bya_core.io.color import histogram, histogram_similarity, lab

_HISTOGRAM_SIZE = 32  # side in pixels of a face for its color histogram
_MAX_CAPTION_TOKENS = 220
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_PROMPT = (
    "These are frames of one video, in order. {people} Describe in one paragraph of at most 100 words the place, who "
    "is where in the picture, what each person looks like and does, and who speaks and who listens. Write plain "
    "statements about what is visible; do not guess names, do not mention frames, and do not describe sounds."
)


def scrfd(folder: str = "~/.insightface/models", min_score: float = 0.5) -> FaceDetector:
    """Load SCRFD from a folder."""
    from bya_core.encoders.face.detection import ScrfdDetector

    return ScrfdDetector(Path(folder).expanduser(), min_score)


class ColorIdentity:
    """CIE Lab histograms of faces: sufficient to track people within one shot, not across shots."""

    threshold = 0.75

    def embed(self, face: np.ndarray) -> np.ndarray:
        size = (_HISTOGRAM_SIZE, _HISTOGRAM_SIZE)
        small = Image.fromarray(face).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        return histogram(lab(np.asarray(small)))

    def similarity(self, query: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
        return histogram_similarity(query, embeddings)


class ArcFaceIdentity:
    """ArcFace embeddings.

    Args:
        file: ONNX model, such as glintr100.onnx of antelopev2.
    """

    threshold = 0.3

    def __init__(self, file: str) -> None:
        from bya_core.encoders.face.recognition import ArcFace

        self.network = ArcFace(Path(file).expanduser())

    def embed(self, face: np.ndarray) -> np.ndarray:
        image = rearrange(torch.from_numpy(face.astype(np.float32) / 255.0), "h w c -> c h w")
        return self.network.features(image).flatten().cpu().numpy()

    def similarity(self, query: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
        return cosine_similarity(query, embeddings)


class SyncNetScorer:
    """Sync-C and Sync-D of all pairs of faces and speeches.

    Args:
        embedder: SyncNet.
    """

    min_confidence, margin = 3.0, 1.0

    def __init__(self, embedder: SyncEmbedder) -> None:
        self.embedder = embedder

    def scores(self, faces: np.ndarray, speeches: np.ndarray) -> list[list[Sync]]:
        lips = [self.embedder.lips(face) for face in faces]
        audio = [self.embedder.voice(speech, faces.shape[1]) for speech in speeches]
        return [[sync_of(shifted_distances(face, speech)) for face in lips] for speech in audio]


def syncnet(weights: str = "", device: str = "cpu") -> SyncNetScorer:
    """Load SyncNet from a file, or from the default location of the metrics."""
    return SyncNetScorer(SyncEmbedder(Path(weights).expanduser() if weights else SYNCNET.require(), device))


def sam2(weights: str = SAM2_WEIGHTS, device: str = "cpu", dtype: str = "float32") -> Segmenter:
    """Load SAM 2.1 from a folder or the Hugging Face cache."""
    return load_sam2(weights, device, getattr(torch, dtype))


def no_model() -> None:
    """Skip the stage."""


def wav2vec(folder: str, device: str = "cpu") -> SpeechEncoder:
    """Load wav2vec2 from a folder."""
    from bya_core.encoders.wav2vec2 import Wav2Vec2SpeechEncoder

    encoder = Wav2Vec2SpeechEncoder(Path(folder).expanduser())
    encoder.to(device)
    return encoder


def model_speech(model: str = "toy") -> SpeechEncoder:
    """Load the speech encoder of a model by name or path."""
    from bya_core.weights.loader import load_bundle  # imports take seconds, also in every worker

    return load_bundle(model).speech


def qwen_captioner(weights: str, device: str = "cpu", dtype: str = "bfloat16") -> QwenCaptioner:
    """Load Qwen2-VL from a folder, or by its repository name from the Hugging Face cache; nothing is downloaded."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = Path(weights).expanduser()
    options: dict[str, Any] = {
        "pretrained_model_name_or_path": str(folder) if folder.is_dir() else weights,
        "local_files_only": True,
    }
    try:
        processor = AutoProcessor.from_pretrained(**options)
        model: Any = AutoModelForImageTextToText.from_pretrained(**options, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        hint = "run hf download Qwen/Qwen2-VL-7B-Instruct (16.6 GB, Apache-2.0), or the 2B model (4.4 GB)"
        expected = "a folder of weights, or a repository in the Hugging Face cache"
        raise InputError(f"no weights of the captioner {weights}", expected, hint) from error
    return QwenCaptioner(model.to(device), processor)


class QwenCaptioner:
    """Captions by the Qwen2-VL family of transformers, or another image-text-to-text model with a chat template."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @torch.no_grad()
    def caption(self, frames: np.ndarray, boxes: np.ndarray, speaking: Sequence[bool]) -> str:
        """See `Captioner`. Decoding is greedy and therefore deterministic."""
        content: list[dict[str, Any]] = [{"type": "image", "image": Image.fromarray(frame)} for frame in frames]
        content.append({"type": "text", "text": _PROMPT.format(people=describe_people(boxes, speaking))})
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        output = self.model.generate(**inputs, max_new_tokens=_MAX_CAPTION_TOKENS, do_sample=False)
        answer = output[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(answer, skip_special_tokens=True)[0].strip()


class TemplateCaptions:
    """Captions that state what earlier stages measured: the number of people, and who speaks."""

    uses_frames = False  # black ones are passed

    def caption(self, frames: np.ndarray, boxes: np.ndarray, speaking: Sequence[bool]) -> str:
        """See `Captioner`."""
        return describe_people(boxes, speaking)


def describe_people(boxes: np.ndarray, speaking: Sequence[bool]) -> str:
    """State the number of people and who speaks, from left to right."""
    if len(speaking) == 1:
        return f"One person is visible, who {'speaks' if speaking[0] else 'listens'}."
    order = np.argsort(boxes[0, :, [0, 2]].mean(axis=0))
    people = [
        f"the {_ORDINALS[k] if k < len(_ORDINALS) else f'{k + 1}th'} {'speaks' if speaking[n] else 'listens'}"
        for k, n in enumerate(order)
    ]
    return f"{len(order)} people are visible: from left to right, {', '.join(people)}."
