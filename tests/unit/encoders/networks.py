"""Face networks with weights derived from their names, so that tests and recorded references use the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.parity.weight_rule import input_tensor, weight

SALT = "faces:"
SHRUNK = ("ClassHead", "BboxHead", "LandmarkHead")  # scaled down so that boxes stay inside the image

# eyes, nose and mouth corners in the sample photos, detected by MTCNN of facenet-pytorch 2.6.0
POINTS = {
    "001/face_1": ((359.9, 276.3), (634.4, 363.2), (547.4, 551.8), (232.5, 653.9), (462.3, 717.3)),
    "001/face_2": ((78.4, 231.4), (289.4, 187.0), (238.8, 293.7), (142.4, 423.9), (339.0, 377.8)),
    "004/face_1": ((170.8, 187.7), (329.1, 190.5), (292.6, 290.2), (166.9, 385.0), (292.8, 384.0)),
    "004/face_2": ((41.1, 81.2), (108.9, 76.8), (85.8, 116.9), (55.1, 155.8), (106.2, 150.7)),
    "014/face_1": ((50.8, 219.4), (326.4, 202.5), (160.8, 299.8), (64.8, 413.9), (307.5, 409.6)),
}


def drawn(module: nn.Module, salt: str = SALT) -> dict[str, Tensor]:
    """A state dict for `module` with values derived from the parameter names."""
    state = {}
    for key, value in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = value.clone()
        elif key.endswith("running_var"):
            state[key] = 1.0 + weight(key, tuple(value.shape), salt).abs()
        else:
            state[key] = weight(key, tuple(value.shape), salt) * (0.02 if key.startswith(SHRUNK) else 1.0)
    return state


def picture(height: int, width: int, name: str = "picture") -> np.ndarray:
    """Smooth random colors, uint8 [height, width, 3]."""
    coarse = input_tensor(name, (1, 3, 6, 8), SALT)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)[0]
    return ((smooth * 60 + 128).clamp(0, 255).round().byte().permute(1, 2, 0)).numpy()


def image(height: int, width: int, name: str = "picture") -> Tensor:
    """`picture` as a float tensor [3, height, width] in [0, 1]."""
    return torch.from_numpy(picture(height, width, name)).permute(2, 0, 1).float() / 255


def write_scrfd(path: Path, batched: bool = False) -> None:
    """Write a detector with the outputs of SCRFD: scores, boxes and points of three levels with two anchors."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes, constants, outputs = [], [], []
    for kind, values in (("score", 1), ("box", 4), ("points", 10)):
        for stride in (8, 16, 32):
            name = f"{kind}_{stride}"
            kernel = weight(f"{name}.weight", (2 * values, 3, stride, stride), SALT).numpy()
            if kind == "box":
                kernel = np.abs(kernel) * 0.05
            bias = np.full(2 * values, {"score": -1.0, "box": 3.0, "points": 0.0}[kind], np.float32)
            constants += [
                numpy_helper.from_array(kernel.astype(np.float32), f"{name}.w"),
                numpy_helper.from_array(bias, f"{name}.b"),
                numpy_helper.from_array(np.array([1, -1, values] if batched else [-1, values]), f"{name}.shape"),
            ]
            nodes += [
                helper.make_node("Conv", ["input", f"{name}.w", f"{name}.b"], [f"{name}.c"], strides=[stride] * 2),
                helper.make_node("Transpose", [f"{name}.c"], [f"{name}.t"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}.t", f"{name}.shape"], [name if values > 1 else f"{name}.r"]),
            ]
            if values == 1:
                nodes.append(helper.make_node("Sigmoid", [f"{name}.r"], [name]))
            shape = [1, None, values] if batched else [None, values]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    inputs = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 640, 640])
    graph = helper.make_graph(nodes, "scrfd", [inputs], outputs, constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))


def write_arcface(path: Path) -> None:
    """Write a recognizer with the input and output of glintr100: [1, 3, 112, 112] -> [1, 512]."""
    from onnx import TensorProto, helper, numpy_helper, save

    constants = [
        numpy_helper.from_array(weight("conv.weight", (16, 3, 8, 8), SALT).numpy(), "conv.w"),
        numpy_helper.from_array(weight("fc.weight", (512, 16 * 14 * 14), SALT).numpy(), "fc.w"),
    ]
    nodes = [
        helper.make_node("Conv", ["input.1", "conv.w"], ["c"], strides=[8, 8]),
        helper.make_node("LeakyRelu", ["c"], ["a"], alpha=0.25),
        helper.make_node("Flatten", ["a"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.w"], ["683"], transB=1),
    ]
    inputs = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [None, 3, 112, 112])
    output = helper.make_tensor_value_info("683", TensorProto.FLOAT, [None, 512])
    graph = helper.make_graph(nodes, "arcface", [inputs], [output], constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
