"""Worker process for AV_MossFormer2_TSE_16K of clearvoice, started by `clearvoice.ClearVoiceExtractor`.

clearvoice pins old versions of several dependencies of this project, so it needs a separate environment:

    python3.11 -m venv ~/clearvoice && ~/clearvoice/bin/pip install clearvoice==0.1.2

This script runs in that environment and imports nothing from this project. It reads one JSON request per line from
stdin, {"input": FILE.npz, "output": FILE.npy}, and writes one JSON reply per line to stdout, {"ok": true} or
{"error": "..."}. The input holds mix float32 [S] at 16 kHz and faces uint8 [N,F,224,224,3] at 25 fps; the output is
float32 [N,S].
"""

import argparse
import json
import os
import sys
import traceback

if __name__ == "__main__":
    sys.path.pop(0)  # modules of this folder must not shadow those of clearvoice

import numpy as np

NAME = "AV_MossFormer2_TSE_16K"
MEAN, STD = 0.4161, 0.1688  # normalization of grayscale mouth crops
SIZE = 112  # side of the center crop in pixels
FPS, RATE = 25, 16000


def load(checkpoints, device):
    """Load the model and its arguments from CHECKPOINTS/AV_MossFormer2_TSE_16K; nothing is downloaded."""
    folder = os.path.join(checkpoints, NAME)
    if not os.path.isfile(os.path.join(folder, "last_best_checkpoint")):
        raise FileNotFoundError(f"no weights in {folder} (alibabasglab/{NAME})")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch
    from clearvoice.network_wrapper import network_wrapper
    from clearvoice.networks import CLS_AV_MossFormer2_TSE_16K

    if not torch.cuda.is_available():  # the model unconditionally moves one index to CUDA
        torch.Tensor.cuda = lambda self, *args, **options: self
    wrapper = network_wrapper()
    wrapper.model_name = NAME
    wrapper.load_args_tse()
    wrapper.args.checkpoint_dir = folder
    speech = CLS_AV_MossFormer2_TSE_16K(wrapper.args)
    speech.args.device = speech.device
    return speech.model, speech.args


def lips(faces):
    """uint8 [F,224,224,3] RGB -> normalized grayscale float32 [F,112,112]."""
    gray = faces.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    edge = (gray.shape[1] - SIZE) // 2
    middle = np.round(gray[:, edge : edge + SIZE, edge : edge + SIZE]) / 255.0
    return (middle - MEAN) / STD


def extract(model, args, mix, faces):
    """Extract the speech of each face: float32 [N,S]."""
    import torch
    from clearvoice.utils.decode import decode_one_audio_AV_MossFormer2_TSE_16K as decode

    peak = float(np.max(np.abs(mix)))
    if peak < 1e-6:
        return np.zeros((len(faces), len(mix)), np.float32)
    speeches = []
    for face in faces:
        visual = lips(face)
        short = int(len(mix) / RATE * FPS) - len(visual)
        if short > 0:
            visual = np.pad(visual, ((0, short), (0, 0), (0, 0)), mode="edge")
        with torch.no_grad():
            speech = decode(model, ((mix / peak)[None].copy(), visual[None]), args)
        speech = np.asarray(speech, np.float32).reshape(-1)[: len(mix)]
        speeches.append(np.pad(speech, (0, len(mix) - len(speech))) * peak)
    return np.stack(speeches).astype(np.float32)


def serve(load_model):
    """Process requests until stdin is closed."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep library output out of the replies
    try:
        model, args = load_model()
        ready = {"ok": True}
    except Exception as error:
        ready = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(ready), file=channel, flush=True)
    if "error" in ready:
        return
    for line in sys.stdin:
        try:
            request = json.loads(line)
            with np.load(request["input"]) as inputs:
                speeches = extract(model, args, inputs["mix"], inputs["faces"])
            with open(request["output"], "wb") as out:
                np.save(out, speeches)
            reply = {"ok": True}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=channel, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", required=True)
    parser.add_argument("--device", default="auto")
    arguments, rest = parser.parse_known_args()
    sys.argv = sys.argv[:1] + rest  # clearvoice parses sys.argv as well
    serve(lambda: load(arguments.checkpoints, arguments.device))


if __name__ == "__main__":
    main()
