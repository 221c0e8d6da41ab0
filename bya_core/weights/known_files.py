"""The files that the released model is made of: where each comes from, how large it is, under which licence.

A size or hash stands here only where it was published (as the pointer of a large file in a public repository, in more
than one place). Every other one is unknown to this project: the hub tells sizes and hashes before a download, they are
checked after it, and they are recorded beside the files, so that any later change is noticed (trust on first use).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownFile:
    """A file of which size and hash are known beforehand.

    Args:
        path: in its repository.
        size: bytes.
        sha256: in hexadecimal.
    """

    path: str
    size: int | None
    sha256: str


@dataclass(frozen=True)
class Part:
    """A group of files that come from one repository and serve one purpose.

    Args:
        name: what `--parts` takes.
        purpose: what it is for.
        repository: on the Hugging Face hub.
        revision: commit that is fetched; None = not pinned, the one of the first download is recorded and kept.
        wanted: one entry per kind of file; each lists patterns in order of preference, the first that matches counts.
        folder: below the model's folder; files keep the names of their repository below it.
        size: in words; what is computed or rounded says so.
        licence, commercial: of these weights, and whether and how commercial use is allowed.
        known: files of which the hash is known.
        needed: whether a video can be made without it.
    """

    name: str
    purpose: str
    repository: str
    revision: str | None
    wanted: tuple[tuple[str, ...], ...]
    folder: str
    size: str
    licence: str
    commercial: str
    known: tuple[KnownFile, ...] = ()
    needed: bool = True

    @property
    def page(self) -> str:
        """Where a person can look at it."""
        return f"https://huggingface.co/{self.repository}"


RELEASE = Part(
    name="release",
    purpose="the video transformer with its speech, face and router modules and LoRA",
    repository="hyb1124/Bindyouravatar",
    revision=None,
    wanted=(
        ("transformer_ema/config.json", "transformer/config.json"),
        ("transformer_ema/*.safetensors", "transformer/*.safetensors"),
        ("audio_module/audio_modules.pt", "audio_module/*.pt"),
        ("face_module/face_modules.pt", "face_module/*.pt"),
        ("router/router_modules.pt", "router/*.pt"),
        ("lora_weight/pytorch_lora_weights.safetensors", "lora_weight/*.safetensors"),
    ),
    folder=".",
    size="not published; 17.4 GB if stored in bfloat16 (from the shapes of the weights), twice that in float32",
    licence="none stated by its authors; trained from CogVideoX-5B-I2V, whose licence binds it too",
    commercial="not clear: ask the authors; the base allows it only after registering with its makers",
)

_BASE = "zai-org/CogVideoX-5b-I2V"  # THUDM/CogVideoX-5b-I2V until its makers renamed themselves

TEXT = Part(
    name="text",
    purpose="T5-XXL with its tokenizer: what a prompt means",
    repository=_BASE,
    revision=None,
    wanted=(
        ("text_encoder/config.json",),
        ("text_encoder/*.safetensors",),
        ("text_encoder/*.index.json",),
        ("tokenizer/*",),
    ),
    folder=".",
    size="about 9.5 GB (4.99 + 4.53 GB)",
    licence="Apache-2.0 (T5); published with CogVideoX-5B-I2V",
    commercial="yes",
)

CODEC = Part(
    name="codec",
    purpose="video codec (VAE) and noise schedule of CogVideoX-5B-I2V",
    repository=_BASE,
    revision=None,
    wanted=(("vae/config.json",), ("vae/*.safetensors",), ("scheduler/scheduler_config.json",)),
    folder=".",
    size="about 0.4 GB (bfloat16) or 0.9 GB (float32)",
    licence="CogVideoX licence",
    commercial="only after registering with its makers",
)

VISION = Part(
    name="vision",
    purpose="EVA02-CLIP-L/14-336: what a face looks like",
    repository="QuanSun/EVA-CLIP",
    revision="690a5975ca06e9a43d16bae440dd08213bfff0c5",
    wanted=(("EVA02_CLIP_L_336_psz14_s6B.pt",),),
    folder="face_encoder",
    size="856 MB",
    licence="MIT",
    commercial="yes",
    known=(
        KnownFile(
            "EVA02_CLIP_L_336_psz14_s6B.pt",
            856461210,
            "84c3a17a228c567a155259b2245b0b59072bf7da510260a0a02ec54de6d50b05",
        ),
    ),
)

RECOGNITION = Part(
    name="recognition",
    purpose="ArcFace of insightface's antelopev2: who a face is; with its face detector (SCRFD)",
    repository="BestWishYsh/ConsisID-preview",
    revision="51b381e7dd0f067c043a231e50f36cdd4fd7aac9",
    wanted=(
        ("face_encoder/models/antelopev2/glintr100.onnx",),
        ("face_encoder/models/antelopev2/scrfd_10g_bnkps.onnx",),
    ),
    folder=".",
    size="278 MB",
    licence="insightface's own, for non-commercial research",
    commercial="no: research only; insightface sells licences for more",
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

FACES = Part(
    name="faces",
    purpose="RetinaFace (finds faces) and BiSeNet (tells skin and hair from the rest), as facexlib publishes them",
    repository="BestWishYsh/ConsisID-preview",
    revision="51b381e7dd0f067c043a231e50f36cdd4fd7aac9",
    wanted=(("face_encoder/detection_Resnet50_Final.pth",), ("face_encoder/parsing_bisenet.pth",)),
    folder=".",
    size="163 MB",
    licence="MIT (facexlib); they were trained on pictures (WIDER FACE, CelebAMask-HQ) given for research",
    commercial="the code's licence allows it; the pictures it was trained on were given for research only",
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

SPEECH = Part(
    name="speech",
    purpose="wav2vec2-base-960h: what is heard in a voice",
    repository="facebook/wav2vec2-base-960h",
    revision="22aad52d435eb6dbaf354bdad9b0da84ce7d6156",
    wanted=(("config.json",), ("preprocessor_config.json",), ("model.safetensors",)),
    folder="wav2vec2-base-960h",
    size="378 MB",
    licence="Apache-2.0",
    commercial="yes",
    known=(
        KnownFile("config.json", 1596, "d3ec255c063d9f95057b553b19c20135b259875834a4fe9deb218a6be25b4cf3"),
        KnownFile("preprocessor_config.json", 159, "b225d617c025463b9e157e06afea8b90dc7078fc70b013c533328423e0486b4a"),
        KnownFile("model.safetensors", 377607901, "8aa76ab2243c81747a1f832954586bc566090c83a0ac167df6f31f0fa917d74a"),
    ),
)

SEGMENTER = Part(
    name="segmenter",
    purpose="SAM 2.1 (large): follows people through a video, for the post router",
    repository="facebook/sam2.1-hiera-large",
    revision=None,
    wanted=(("*.json",), ("model.safetensors",)),
    folder="sam2.1-hiera-large",
    size="about 0.9 GB",
    licence="Apache-2.0",
    commercial="yes",
    needed=False,
)

SYNCNET = Part(
    name="syncnet",
    purpose="SyncNet v2: measures whether lips follow a voice (Sync-C, Sync-D)",
    repository="ByteDance/LatentSync",
    revision=None,
    wanted=(("auxiliary/syncnet_v2.model",),),
    folder="syncnet",
    size="about 55 MB",
    licence="MIT (syncnet_python); the repository it is taken from is under OpenRAIL++",
    commercial="the code's licence allows it; the recordings it was trained on (BBC) were given for research only",
    known=(
        KnownFile(
            "auxiliary/syncnet_v2.model", None, "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442"
        ),
    ),
    needed=False,
)

OFFICIAL: tuple[Part, ...] = (RELEASE, TEXT, CODEC, VISION, RECOGNITION, FACES, SPEECH, SEGMENTER, SYNCNET)
"""All parts of the model `official`."""

OFFICIAL_SETTINGS = {
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
"""What the released model was made for, and the settings its own command line begins with."""
