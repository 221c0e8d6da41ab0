"""Weights of the networks that measure: what each is for, where it comes from, and where it is looked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bya_core.errors import InputError
from bya_core.weights.cache import model_folders

FOLDER = "metrics"


@dataclass(frozen=True)
class MetricWeights:
    """One file.

    Args:
        name: of the network.
        file: name of the file, looked for in the folder "metrics" of every place where models lie, and where
            `download official` puts it.
        why: which figures need it.
        source: where to get it.
        size: in words.
        licence: of the weights.
    """

    name: str
    file: str
    why: str
    source: str
    size: str
    licence: str

    @property
    def what(self) -> str:
        """For messages about a file that does not fit."""
        return f"the weights of {self.name} ({self.size}, {self.licence})"

    def find(self) -> Path | None:
        """The file, if it is on this machine."""
        own = (folder / FOLDER / self.file for folder in model_folders())
        fetched = (path for folder in model_folders() for path in folder.glob(f"official/**/{self.file}"))
        return next((path for path in (*own, *fetched) if path.is_file()), None)

    def needed(self) -> Path:
        """The file. Raises InputError, with how to get it, where it is not here."""
        path = self.find()
        if path is None:
            raise InputError(f"no {self.file}", self.what, f"get it from {self.source} and put it into {self.home}")
        return path

    @property
    def home(self) -> Path:
        """Where it belongs."""
        return model_folders()[0] / FOLDER

    @property
    def missing(self) -> str:
        """What cannot be measured without it, why, and how to get it: one sentence."""
        return (
            f"{self.why} not measured: {self.name} needs {self.file} ({self.size}, {self.licence}); "
            f"get it from {self.source} and put it into {self.home}."
        )


SYNCNET = MetricWeights(
    "SyncNet",
    "syncnet_v2.model",
    "Sync-C and Sync-D",
    "http://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model "
    "(or: bya download official --components syncnet)",
    "55 MB",
    "published with MIT-licensed code, no licence of their own",
)
FACENET = MetricWeights(
    "FaceNet (InceptionResnetV1 on VGGFace2)",
    "20180402-114759-vggface2.pt",
    "Face similarity (FaceNet)",
    "https://github.com/timesler/facenet-pytorch/releases/tag/v2.2.9",
    "111 MB",
    "MIT; the faces it learned from are for research",
)
ARCFACE = MetricWeights(
    "ArcFace (glintr100 of antelopev2)",
    "glintr100.onnx",
    "Face similarity (ArcFace)",
    "https://github.com/deepinsight/insightface/releases/tag/v0.7 (antelopev2.zip)",
    "261 MB",
    "non-commercial research only",
)
INCEPTION = MetricWeights(
    "InceptionV3 for FID",
    "weights-inception-2015-12-05-6726825d.pth",
    "FID",
    "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0",
    "96 MB",
    "Apache-2.0",
)
I3D = MetricWeights(
    "I3D for FVD",
    "i3d_torchscript.pt",
    "FVD",
    "https://huggingface.co/flateon/FVD-I3D-torchscript",
    "51 MB",
    "Apache-2.0",
)
