"""The real models of the registry: thin makers around bya_core's encoders and metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from bya_core.encoders.face.detection import FaceDetector, find_detector
from bya_core.encoders.protocols import SpeechEncoder
from bya_core.encoders.segmentation import SAM2_WEIGHTS, Segmenter, load_sam2
from bya_core.errors import InputError
from bya_core.evaluation.identity import cosine_similarity
from bya_core.evaluation.metric_weights import SYNCNET
from bya_core.evaluation.sync_metrics import Sync, shifted_distances, sync_of
from bya_core.evaluation.syncnet import SyncEmbedder
from bya_core.io.color import histogram, histogram_similarity, lab

_SIDE = 32  # pixels that a face is shrunk to before its colours are counted


def any_detector() -> FaceDetector:
    """The best one on this machine."""
    return find_detector()


def scrfd(folder: str = "~/.insightface/models", least: float = 0.5) -> FaceDetector:
    """SCRFD from this folder."""
    from bya_core.encoders.face.scrfd import ScrfdDetector

    return ScrfdDetector(Path(folder).expanduser(), least)


class ColourIdentity:
    """Faces by their colours in CIE Lab: good enough to follow people through one shot, useless beyond."""

    same = 0.75

    def describe(self, face: np.ndarray) -> np.ndarray:
        small = np.asarray(Image.fromarray(face).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))
        return histogram(lab(small))

    def likeness(self, one: np.ndarray, many: np.ndarray) -> np.ndarray:
        return histogram_similarity(one, many)


class ArcFaceIdentity:
    """Faces by a recognition network.

    Args:
        file: its ONNX model, such as glintr100.onnx of antelopev2.
    """

    same = 0.3

    def __init__(self, file: str) -> None:
        from bya_core.encoders.face.recognition import ArcFace

        self.network = ArcFace(Path(file).expanduser())

    def describe(self, face: np.ndarray) -> np.ndarray:
        image = rearrange(torch.from_numpy(face.astype(np.float32) / 255.0), "h w c -> c h w")
        return self.network.features(image).flatten().cpu().numpy()

    def likeness(self, one: np.ndarray, many: np.ndarray) -> np.ndarray:
        return cosine_similarity(one, many)


class SyncNetScorer:
    """Sync-C and Sync-D of every face and voice by SyncNet.

    Args:
        embedder: `SyncEmbedder`.
    """

    def __init__(self, embedder: SyncEmbedder) -> None:
        self.embedder = embedder

    def scores(self, faces: np.ndarray, voices: np.ndarray) -> list[list[Sync]]:
        lips = [self.embedder.lips(face) for face in faces]
        heard = [self.embedder.voice(voice, faces.shape[1]) for voice in voices]
        return [[sync_of(shifted_distances(face, voice)) for face in lips] for voice in heard]


def syncnet(weights: str = "", device: str = "cpu") -> SyncNetScorer:
    """SyncNet from a file, by default from where the metrics look for it."""
    return SyncNetScorer(SyncEmbedder(Path(weights).expanduser() if weights else SYNCNET.needed(), device))


def sam2(weights: str = SAM2_WEIGHTS, device: str = "cpu", dtype: str = "float32") -> Segmenter:
    """SAM 2.1 from a folder or the Hugging Face cache."""
    return load_sam2(weights, device, getattr(torch, dtype))


def no_speech_encoder() -> None:
    """Training makes the features itself."""
    return None


def wav2vec(folder: str, device: str = "cpu") -> SpeechEncoder:
    """wav2vec2 from a folder."""
    from bya_core.encoders.wav2vec2 import Wav2Vec2SpeechEncoder

    encoder = Wav2Vec2SpeechEncoder(Path(folder).expanduser())
    encoder.to(device)
    return encoder


def toy_speech(folder: str = "") -> SpeechEncoder:
    """The speech network of the toy model."""
    from bya_core.toy.bundle import load_toy_encoders
    from bya_core.weights.registry import find_model

    place = Path(folder).expanduser() if folder else find_model("toy").folder
    if place is None or not (place / "speech.safetensors").is_file():
        raise InputError(f"no speech network in {place}", "speech.safetensors", "give the folder of the toy model")
    return load_toy_encoders(place).speech
