"""Convert the small face and person networks of mediapipe 0.10.21 (Apache-2.0) to safetensors.

    pip download --no-deps mediapipe==0.10.21
    pip install tflite            # reads the flatbuffers; needed by this tool only
    python -m tools.convert_mediapipe mediapipe-0.10.21-*.whl

Writes `bya_core/encoders/weights/*.safetensors` and the license of mediapipe beside them. The source files store 16-bit
weights, so float16 is exact here; they are computed in float32. Parameters are matched by their order in the graph.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bya_core.encoders.face.blazeface import BlazeFace
from bya_core.encoders.face.mesh_network import FaceMeshNetwork
from bya_core.encoders.person import SelfieSegmentation

TARGET = Path(__file__).parents[1] / "bya_core" / "encoders" / "weights"


def block_names(prefix: str, count: int, start: int = 0) -> list[str]:
    """Names of the convolutions of consecutive residual blocks."""
    return [f"{prefix}.{k}.{part}" for k in range(start, start + count) for part in ("depthwise", "pointwise")]


def blazeface_names() -> list[str]:
    """Convolutions of BlazeFace in the order of the graph."""
    heads = ["fine_score", "coarse_score", "fine_box", "coarse_box"]
    return ["stem", *block_names("fine", 11), *block_names("coarse", 5), *heads]


def mesh_names() -> list[str]:
    """Convolutions of the face mesh in the order of the graph; its two heads are interleaved."""
    names = ["stem", *block_names("trunk", 14), *block_names("points", 2)]
    presence = [*block_names("presence", 1), "presence.1", *block_names("presence", 1, 3), "presence.4"]
    points = [*block_names("points", 1, 2), "points.3", *block_names("points", 1, 5), "points.6"]
    return names + [name for pair in zip(presence, points, strict=True) for name in pair]


def mesh_activations() -> list[str]:
    """PReLUs of the face mesh in the order of the graph."""
    trunk = [f"trunk.{k}.activation" for k in range(14)]
    points = ["points.2.activation", "points.4", "points.5.activation"]
    presence = ["presence.0.activation", "presence.2", "presence.3.activation"]
    heads = [name for pair in zip(presence, points, strict=True) for name in pair]
    return ["stem_activation", *trunk, "points.0.activation", "points.1.activation", *heads]


def person_names() -> list[str]:
    """Convolutions of the person segmentation in the order of the graph."""
    names = ["stem"]
    for k, squeeze in enumerate((1, 0, 0, 1, 1, 1, 1, 1)):
        attention = ["squeeze.reduce", "squeeze.expand"] if squeeze else []
        names += [f"blocks.{k}.{part}" for part in ("expand", "depthwise", *attention, "project")]
    names += ["pooled", "pooled_attention"]
    parts = ("project", "attention.reduce", "attention.expand", "merge", "depthwise")
    return [*names, *(f"decoder.{k}.{part}" for k in range(3) for part in parts), "head"]


def read_graph(data: bytes) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """(kernel, bias) of every convolution and the slopes of every PReLU of a tflite file, in the order of the graph."""
    import tflite

    model = tflite.Model.GetRootAsModel(data, 0)
    graph = model.Subgraphs(0)
    kinds = {number: name for name, number in vars(tflite.BuiltinOperator).items() if isinstance(number, int)}
    widened: dict[int, int] = {}
    types = {tflite.TensorType.FLOAT16: np.float16, tflite.TensorType.FLOAT32: np.float32}

    def values(index: int) -> np.ndarray:
        tensor = graph.Tensors(widened.get(index, index))
        raw = model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes()
        return np.frombuffer(raw, types[tensor.Type()]).reshape(tensor.ShapeAsNumpy())

    convolutions, slopes = [], []
    for position in range(graph.OperatorsLength()):
        operator = graph.Operators(position)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind, inputs = kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())], operator.InputsAsNumpy()
        if kind == "DEQUANTIZE":
            widened[int(operator.Outputs(0))] = int(inputs[0])
        elif kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "CUSTOM"):  # custom: transposed convolution with bias
            order = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2), "CUSTOM": (3, 0, 1, 2)}[kind]
            convolutions.append((values(int(inputs[1])).transpose(order), values(int(inputs[2]))))
        elif kind == "PRELU":
            slopes.append(values(int(inputs[1])).reshape(-1))
    return convolutions, slopes


def convert(data: bytes, network: nn.Module, names: list[str], activations: list[str]) -> dict[str, Tensor]:
    """Weights of a tflite file under the names of `network`, checked against its shapes."""
    convolutions, slopes = read_graph(data)
    weights: dict[str, Tensor] = {}
    for name, (kernel, bias) in zip(names, convolutions, strict=True):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.tensor(kernel), torch.tensor(bias)
    for name, slope in zip(activations, slopes, strict=True):
        weights[f"{name}.weight"] = torch.tensor(slope)
    network.load_state_dict(weights)
    return {name: value.half().contiguous() for name, value in weights.items()}


def main(wheel: str) -> None:
    """Convert the three networks in `wheel`."""
    files = {
        "blazeface_short_range": ("face_detection/face_detection_short_range", BlazeFace(), blazeface_names(), []),
        "face_mesh": ("face_landmark/face_landmark", FaceMeshNetwork(), mesh_names(), mesh_activations()),
        "selfie_segmentation": (
            "selfie_segmentation/selfie_segmentation",
            SelfieSegmentation(),
            person_names(),
            [],
        ),
    }
    TARGET.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for target, (source, network, names, activations) in files.items():
            data = archive.read(f"mediapipe/modules/{source}.tflite")
            metadata = {"source": f"mediapipe 0.10.21, {source}.tflite", "license": "Apache-2.0"}
            save_file(convert(data, network, names, activations), TARGET / f"{target}.safetensors", metadata)
        (TARGET / "LICENSE").write_bytes(archive.read("mediapipe-0.10.21.dist-info/LICENSE"))


if __name__ == "__main__":
    main(sys.argv[1])
