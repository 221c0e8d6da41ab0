"""Record the outputs of mediapipe's face and person networks for `test_face_mesh.py` and `test_person.py`.

    pip install ai-edge-litert scikit-image safetensors
    python tests/unit/encoders/record_faces.py mediapipe-0.10.21-*.whl

The image is a part of "astronaut" of scikit-image: Eileen Collins, photographed by NASA, in the public domain.
"""

import sys
import zipfile
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from safetensors.numpy import save_file
from skimage.data import astronaut

MODULES = "mediapipe/modules/"
NETWORKS = {
    "detector": "face_detection/face_detection_short_range.tflite",
    "mesh": "face_landmark/face_landmark.tflite",
    "person": "selfie_segmentation/selfie_segmentation.tflite",
}


def inputs(image: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs [2, side, side, 3] of the networks from an image uint8 [192, 192, 3]: as it is and mirrored."""
    both = np.stack([image, image[:, ::-1]]).astype(np.float32)
    return {
        "detector": both[:, 32:160, 32:160] / 127.5 - 1.0,
        "mesh": both / 255.0,
        "person": np.pad(both, ((0, 0), (32, 32), (32, 32), (0, 0)), mode="edge") / 255.0,
    }


def run(model: bytes, images: np.ndarray) -> list[np.ndarray]:
    """All outputs of a tflite network for images [B, H, W, 3]."""
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    results = []
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        results.append([interpreter.get_tensor(each["index"])[0] for each in interpreter.get_output_details()])
    return [np.stack(values) for values in zip(*results, strict=True)]


if __name__ == "__main__":
    photo = np.ascontiguousarray(astronaut()[30:222, 128:320])
    recorded = {"photo": photo}
    with zipfile.ZipFile(sys.argv[1]) as archive:
        for name, images in inputs(photo).items():
            for value in run(archive.read(MODULES + NETWORKS[name]), images):
                value = value.reshape(len(images), *(n for n in value.shape[1:] if n > 1))
                recorded[f"{name}.{value.size // len(images)}"] = (
                    value[:, ::4, ::4].copy() if name == "person" else value
                )
    save_file(recorded, Path(__file__).parent / "faces.safetensors")
    print({name: value.shape for name, value in recorded.items()})
