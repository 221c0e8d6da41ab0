"""What facexlib, insightface and OpenCV make of the networks and pictures of `networks.py`: references of the tests.

    python -m tests.unit.encoders.record

writes reference.safetensors beside this file. It needs facexlib 0.3.0, insightface 2.1, onnx, opencv-python-headless 5
and torchvision, which nothing else here needs; the tests themselves need none of them but onnx.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import torchvision_shim
from tests.parity.weight_rule import input_tensor
from tests.unit.encoders.networks import POINTS, SALT, drawn, picture, write_arcface, write_scrfd

FILE = Path(__file__).with_name("reference.safetensors")
TEMPLATE = [  # of facexlib's FaceRestoreHelper
    *([192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935]),
    *([201.26117, 371.41043], [313.08905, 371.15118]),
]


def parsing() -> dict[str, Tensor]:
    from facexlib.parsing.bisenet import BiSeNet

    network = BiSeNet(num_class=19).eval()
    network.load_state_dict(drawn(network))
    with torch.no_grad():
        scores = network(input_tensor("parsing", (1, 3, 96, 64), SALT))[0]
    return {"bisenet": scores[0, :, ::4, ::4].contiguous(), "labels": scores[0].argmax(dim=0).byte()}


def detection() -> dict[str, Tensor]:
    import torchvision
    from facexlib.detection.retinaface import RetinaFace

    network = RetinaFace("resnet50", device="cpu").eval()
    network.load_state_dict(drawn(network))
    with torch.no_grad():
        boxes, scores, points = network(input_tensor("detection", (1, 3, 72, 104), SALT) * 50)
    made = {"retina_boxes": boxes[0], "retina_scores": scores[0, :, 1], "retina_points": points[0]}
    torchvision.ops.nms = lambda boxes, scores, iou_threshold: scores.argsort(descending=True)
    image = np.ascontiguousarray(picture(150, 200)[..., ::-1])
    with torch.no_grad():
        every = network.detect_faces(image, conf_threshold=0.0)
        least = float(np.sort(every[:, 4])[-40])
        torchvision.ops.nms = greedy  # its own needs a torchvision built for this torch
        found = network.detect_faces(image, conf_threshold=least)
    return made | {"retina_least": torch.tensor(least), "retina_found": torch.from_numpy(found).float()}


def greedy(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """What torchvision's nms does, written plainly."""
    kept: list[int] = []
    for k in scores.argsort(descending=True, stable=True).tolist():
        alike = False
        for other in kept:
            low, high = torch.maximum(boxes[k, :2], boxes[other, :2]), torch.minimum(boxes[k, 2:], boxes[other, 2:])
            both = (high - low).clamp(min=0).prod()
            whole = sum((boxes[n, 2:] - boxes[n, :2]).prod() for n in (k, other)) - both
            alike = alike or bool(both / whole > iou_threshold)
        if not alike:
            kept.append(k)
    return torch.tensor(kept, dtype=torch.long)


def onnx() -> dict[str, Tensor]:
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX
    from insightface.model_zoo.scrfd import SCRFD

    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for batched in (False, True):
            write_scrfd(Path(folder) / "det.onnx", batched)
            detector = SCRFD(model_file=f"{folder}/det.onnx")
            detector.prepare(-1)
            image = np.ascontiguousarray(picture(300, 420)[..., ::-1])
            boxes, points = detector.detect(image, input_size=(640, 640), det_thresh=0.5)
            both = np.concatenate([boxes, points.reshape(len(points), 10)], axis=1)
            made["scrfd_batched" if batched else "scrfd"] = torch.from_numpy(both).float()
        write_arcface(Path(folder) / "rec.onnx")
        crop = np.ascontiguousarray(picture(512, 512, "crop")[..., ::-1])
        made["arcface"] = torch.from_numpy(ArcFaceONNX(f"{folder}/rec.onnx").get_feat(crop)[0])
    return made


def alignment() -> dict[str, Tensor]:
    import cv2

    made = {}
    image = np.ascontiguousarray(picture(480, 400)[..., ::-1])
    for name, points in POINTS.items():
        matrix = cv2.estimateAffinePartial2D(np.array(points), np.array(TEMPLATE), method=cv2.LMEDS)[0]
        made[f"matrix {name}"] = torch.from_numpy(matrix)
        crop = cv2.warpAffine(image, matrix, (512, 512), borderMode=cv2.BORDER_CONSTANT, borderValue=(135, 133, 132))
        made[f"crop {name}"] = torch.from_numpy(np.ascontiguousarray(crop[::12, ::12, ::-1]))
    return made


if __name__ == "__main__":
    if not torchvision_shim.importable():
        sys.exit("torchvision cannot be imported")
    made = {**parsing(), **detection(), **onnx(), **alignment()}
    save_file({name: value.contiguous() for name, value in made.items()}, FILE)
