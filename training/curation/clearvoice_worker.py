"""AV_MossFormer2_TSE_16K of clearvoice, as a process of its own: started by `extractor.ClearVoiceExtractor`.

clearvoice pins old versions of much of what this project uses, so it lives in an environment of its own:

    python3.11 -m venv ~/clearvoice && ~/clearvoice/bin/pip install clearvoice==0.1.2

This file is run by that environment's Python and imports nothing of this project. It answers on the pipe it was started
with: one JSON line a request {"input": FILE.npz, "output": FILE.npy}, one JSON line an answer {"ok": true} or
{"error": "..."}. An input holds mix float32 [S] at 16 kHz and faces uint8 [N,F,224,224,3] at 25 a second; an output
float32 [N,S].
"""

import argparse
import json
import os
import sys
import traceback

if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose modules must not stand in for those of clearvoice

import numpy as np

NAME = "AV_MossFormer2_TSE_16K"
MEAN, SPREAD = 0.4161, 0.1688  # of grey lips, as the model was trained
SIDE = 112  # pixels in the middle of a face crop that the model sees
FPS, RATE = 25, 16000


def load(checkpoints, device):
    """Model and arguments of clearvoice, with weights from checkpoints/AV_MossFormer2_TSE_16K; downloads nothing."""
    folder = os.path.join(checkpoints, NAME)
    if not os.path.isfile(os.path.join(folder, "last_best_checkpoint")):
        raise FileNotFoundError(f"no weights in {folder} (alibabasglab/{NAME})")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch
    from clearvoice.network_wrapper import network_wrapper
    from clearvoice.networks import CLS_AV_MossFormer2_TSE_16K

    if not torch.cuda.is_available():  # the model moves one index to CUDA whatever device it is on
        torch.Tensor.cuda = lambda self, *args, **options: self
    wrapper = network_wrapper()
    wrapper.model_name = NAME
    wrapper.load_args_tse()
    wrapper.args.checkpoint_dir = folder
    speech = CLS_AV_MossFormer2_TSE_16K(wrapper.args)
    speech.args.device = speech.device
    return speech.model, speech.args


def lips(faces):
    """uint8 [F,224,224,3] RGB -> float32 [F,112,112] grey, normalised."""
    grey = faces.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    edge = (grey.shape[1] - SIDE) // 2
    middle = np.round(grey[:, edge : edge + SIDE, edge : edge + SIDE]) / 255.0
    return (middle - MEAN) / SPREAD


def extract(model, args, mix, faces):
    """float32 [N,S]."""
    import torch
    from clearvoice.utils.decode import decode_one_audio_AV_MossFormer2_TSE_16K as decode

    loudest = float(np.max(np.abs(mix)))
    if loudest < 1e-6:
        return np.zeros((len(faces), len(mix)), np.float32)
    voices = []
    for face in faces:
        visual = lips(face)
        short = int(len(mix) / RATE * FPS) - len(visual)
        if short > 0:
            visual = np.pad(visual, ((0, short), (0, 0), (0, 0)), mode="edge")
        with torch.no_grad():
            voice = decode(model, ((mix / loudest)[None].copy(), visual[None]), args)
        voice = np.asarray(voice, np.float32).reshape(-1)[: len(mix)]
        voices.append(np.pad(voice, (0, len(mix) - len(voice))) * loudest)
    return np.stack(voices).astype(np.float32)


def serve(load_model):
    """Answer requests until the pipe closes."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints must not get between the answers
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
            with np.load(request["input"]) as given:
                voices = extract(model, args, given["mix"], given["faces"])
            with open(request["output"], "wb") as out:
                np.save(out, voices)
            answer = {"ok": True}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=channel, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", required=True)
    parser.add_argument("--device", default="auto")
    given, rest = parser.parse_known_args()
    sys.argv = sys.argv[:1] + rest  # clearvoice reads the command line too
    serve(lambda: load(given.checkpoints, given.device))


if __name__ == "__main__":
    main()
