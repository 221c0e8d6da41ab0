"""Downloadable components of the released model: source repository, size, license and known hashes.

Sizes and hashes are listed only where they were published. For all other files, the hub reports size and hash before a
download; they are verified afterwards and stored next to the files, so that later changes are detected (trust on first
use).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bya_core.config import SAM2_WEIGHTS


@dataclass(frozen=True)
class KnownFile:
    """A file with a known hash.

    Args:
        path: Path in the repository.
        size: Size in bytes, or `None` if unknown.
        sha256: Hexadecimal SHA-256.
    """

    path: str
    size: int | None
    sha256: str


@dataclass(frozen=True)
class Component:
    """Files of one repository that form one component of a model.

    Args:
        name: Name used by `bya download --components`.
        purpose: What the component does.
        repository: Repository on the Hugging Face hub.
        revision: Pinned commit. If `None`, the commit of the first download is stored and used from then on.
        files: One entry per kind of file, each a tuple of glob patterns in order of preference; the first pattern that
            matches is used.
        folder: Target folder, relative to the model folder. Paths of the repository are kept below it.
        size: Human-readable size.
        license: License of the weights.
        commercial_use: Whether and under which conditions commercial use is allowed.
        known: Files with a known hash.
        required: Whether generating videos needs it.
        optional_files: As `files`, for files that the repository may lack.
    """

    name: str
    purpose: str
    repository: str
    revision: str | None
    files: tuple[tuple[str, ...], ...]
    folder: str
    size: str
    license: str
    commercial_use: str
    known: tuple[KnownFile, ...] = ()
    required: bool = True
    optional_files: tuple[tuple[str, ...], ...] = ()

    @property
    def url(self) -> str:
        """Page of the repository."""
        return f"https://huggingface.co/{self.repository}"


RELEASE = Component(
    name="release",
    purpose="video transformer with audio, face and router modules and LoRA",
    repository="hyb1124/Bindyouravatar",
    revision=None,
    files=(
        ("transformer_ema/config.json", "transformer/config.json"),
        ("transformer_ema/*.safetensors", "transformer/*.safetensors"),
        ("audio_module/audio_modules.pt", "audio_module/*.pt"),
        ("face_module/face_modules.pt", "face_module/*.pt"),
        ("router/router_modules.pt", "router/*.pt"),
        ("lora_weight/pytorch_lora_weights.safetensors", "lora_weight/*.safetensors"),
    ),
    folder=".",
    size="not published; 17.4 GB in bfloat16 (computed from the weight shapes), twice that in float32",
    license="none stated by its authors; derived from CogVideoX-5B-I2V, whose license applies as well",
    commercial_use="unclear, ask the authors; the base model requires registration with its publisher",
)

RELEASE_CONFIG = Component(
    name="release_config",
    purpose="configuration of scheduler and VAE in the release, used instead of the base model's",
    repository=RELEASE.repository,
    revision=None,
    files=(),
    optional_files=(("scheduler/scheduler_config.json",), ("vae/config.json",)),
    folder="release",
    size="a few kB",
    license=RELEASE.license,
    commercial_use=RELEASE.commercial_use,
    required=False,
)

_BASE = "zai-org/CogVideoX-5b-I2V"  # formerly THUDM/CogVideoX-5b-I2V

TEXT = Component(
    name="text",
    purpose="T5-XXL text encoder with tokenizer",
    repository=_BASE,
    revision=None,
    files=(
        ("text_encoder/config.json",),
        ("text_encoder/*.safetensors",),
        ("text_encoder/*.index.json",),
        ("tokenizer/*",),
    ),
    folder=".",
    size="about 9.5 GB (4.99 + 4.53 GB)",
    license="Apache-2.0 (T5); published with CogVideoX-5B-I2V",
    commercial_use="yes",
)

CODEC = Component(
    name="codec",
    purpose="video VAE and scheduler configuration of CogVideoX-5B-I2V",
    repository=_BASE,
    revision=None,
    files=(("vae/config.json",), ("vae/*.safetensors",), ("scheduler/scheduler_config.json",)),
    folder=".",
    size="about 0.4 GB (bfloat16) or 0.9 GB (float32)",
    license="CogVideoX license",
    commercial_use="only after registration with its publisher",
)

VISION = Component(
    name="vision",
    purpose="EVA02-CLIP-L/14-336 image encoder for face features",
    repository="QuanSun/EVA-CLIP",
    revision="690a5975ca06e9a43d16bae440dd08213bfff0c5",
    files=(("EVA02_CLIP_L_336_psz14_s6B.pt",),),
    folder="face_encoder",
    size="856 MB",
    license="MIT",
    commercial_use="yes",
    known=(
        KnownFile(
            "EVA02_CLIP_L_336_psz14_s6B.pt",
            856461210,
            "84c3a17a228c567a155259b2245b0b59072bf7da510260a0a02ec54de6d50b05",
        ),
    ),
)

RECOGNITION = Component(
    name="recognition",
    purpose="ArcFace recognition and SCRFD face detection of insightface's antelopev2",
    repository="BestWishYsh/ConsisID-preview",
    revision="51b381e7dd0f067c043a231e50f36cdd4fd7aac9",
    files=(
        ("face_encoder/models/antelopev2/glintr100.onnx",),
        ("face_encoder/models/antelopev2/scrfd_10g_bnkps.onnx",),
    ),
    folder=".",
    size="278 MB",
    license="insightface license, non-commercial research only",
    commercial_use="no, research only; insightface sells commercial licenses",
    known=(
        KnownFile(
            "face_encoder/models/antelopev2/glintr100.onnx",
            260665334,
            "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
        ),
        KnownFile(
            "face_encoder/models/antelopev2/scrfd_10g_bnkps.onnx",
            16923827,
            "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
        ),
    ),
)

FACES = Component(
    name="faces",
    purpose="RetinaFace face detection and BiSeNet face parsing, as published by facexlib",
    repository="BestWishYsh/ConsisID-preview",
    revision="51b381e7dd0f067c043a231e50f36cdd4fd7aac9",
    files=(("face_encoder/detection_Resnet50_Final.pth",), ("face_encoder/parsing_bisenet.pth",)),
    folder=".",
    size="163 MB",
    license="MIT (facexlib); trained on research-only data sets (WIDER FACE, CelebAMask-HQ)",
    commercial_use="allowed by the license of the code; the training images are research-only",
    known=(
        KnownFile(
            "face_encoder/detection_Resnet50_Final.pth",
            109497761,
            "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
        ),
        KnownFile(
            "face_encoder/parsing_bisenet.pth",
            53289463,
            "468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
        ),
    ),
)

SPEECH = Component(
    name="speech",
    purpose="wav2vec2-base-960h speech encoder",
    repository="facebook/wav2vec2-base-960h",
    revision="22aad52d435eb6dbaf354bdad9b0da84ce7d6156",
    files=(("config.json",), ("preprocessor_config.json",), ("model.safetensors",)),
    folder="wav2vec2-base-960h",
    size="378 MB",
    license="Apache-2.0",
    commercial_use="yes",
    known=(
        KnownFile("config.json", 1596, "d3ec255c063d9f95057b553b19c20135b259875834a4fe9deb218a6be25b4cf3"),
        KnownFile("preprocessor_config.json", 159, "b225d617c025463b9e157e06afea8b90dc7078fc70b013c533328423e0486b4a"),
        KnownFile("model.safetensors", 377607901, "8aa76ab2243c81747a1f832954586bc566090c83a0ac167df6f31f0fa917d74a"),
    ),
)

SEGMENTER = Component(
    name="segmenter",
    purpose="SAM 2.1 (large) video segmentation for the post router",
    repository=SAM2_WEIGHTS,
    revision=None,
    files=(("*.json",), ("model.safetensors",)),
    folder="sam2.1-hiera-large",
    size="about 0.9 GB",
    license="Apache-2.0",
    commercial_use="yes",
    required=False,
)

SYNCNET = Component(
    name="syncnet",
    purpose="SyncNet v2 for lip-sync metrics (Sync-C, Sync-D)",
    repository="ByteDance/LatentSync",
    revision=None,
    files=(("auxiliary/syncnet_v2.model",),),
    folder="syncnet",
    size="about 55 MB",
    license="MIT (syncnet_python); the hosting repository uses OpenRAIL++",
    commercial_use="allowed by the license of the code; the training data (BBC) is research-only",
    known=(
        KnownFile(
            "auxiliary/syncnet_v2.model", None, "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442"
        ),
    ),
    required=False,
)

OFFICIAL: tuple[Component, ...] = (
    RELEASE,
    RELEASE_CONFIG,
    TEXT,
    CODEC,
    VISION,
    RECOGNITION,
    FACES,
    SPEECH,
    SEGMENTER,
    SYNCNET,
)
"""All components of the model `official`."""

OFFICIAL_SETTINGS: dict[str, Any] = {
    "native": {"height": 480, "width": 720, "num_frames": 49},
    "sampling": {
        "steps": 50,
        "guidance_scale": 7.0,
        "audio_guidance_scale": 7.0,
        "scheduler": "dpm",
        "drop_identity": False,
    },
    "max_characters": 2,
}
"""Training resolution of the released model and the default settings of its command line."""
