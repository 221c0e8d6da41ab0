"""Weights of the evaluation networks: purpose, source, license, and location on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bya_core.errors import InputError
from bya_core.weights.cache import model_folders

FOLDER = "metrics"


@dataclass(frozen=True)
class MetricWeights:
    """A weights file.

    Args:
        name: of the network.
        file: name of the file; searched in the subfolder "metrics" of all model folders and among the files of
            `bya download official`.
        metrics: the metrics that need it.
        source: URL.
        size: such as "55 MB".
        license: of the weights.
    """

    name: str
    file: str
    metrics: str
    source: str
    size: str
    license: str

    @property
    def description(self) -> str:
        """Name, size and license, for messages."""
        return f"the weights of {self.name} ({self.size}, {self.license})"

    def find(self) -> Path | None:
        """The file, or None if it is not on this machine."""
        paths = [folder / FOLDER / self.file for folder in model_folders()]
        paths += [path for folder in model_folders() for path in folder.glob(f"official/**/{self.file}")]
        return next((path for path in paths if path.is_file()), None)

    def require(self) -> Path:
        """The file. Raises InputError with instructions if it is not on this machine."""
        path = self.find()
        if path is None:
            raise InputError(
                f"no {self.file}", self.description, f"get it from {self.source} and put it into {self.home}"
            )
        return path

    @property
    def home(self) -> Path:
        """Folder to put it into."""
        return model_folders()[0] / FOLDER

    @property
    def missing(self) -> str:
        """Notice: what is not measured without it, and how to get it."""
        return (
            f"{self.metrics} not measured: {self.name} needs {self.file} ({self.size}, {self.license}); "
            f"get it from {self.source} and put it into {self.home}."
        )


SYNCNET = MetricWeights(
    "SyncNet",
    "syncnet_v2.model",
    "Sync-C and Sync-D",
    "http://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model "
    "(or: bya download official --components syncnet)",
    "55 MB",
    "published with MIT-licensed code, without a license of its own",
)
FACENET = MetricWeights(
    "FaceNet (InceptionResnetV1 on VGGFace2)",
    "20180402-114759-vggface2.pt",
    "Face similarity (FaceNet)",
    "https://github.com/timesler/facenet-pytorch/releases/tag/v2.2.9",
    "111 MB",
    "MIT; trained on VGGFace2, for research only",
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
