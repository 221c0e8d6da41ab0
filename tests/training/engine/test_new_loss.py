"""The edits of docs/how-to/train-new-loss.md: a term of the router loss is a field and an entry."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "how-to" / "train-new-loss.md"


def edited(text: str) -> str:
    """A source file with the edits of the page."""
    blocks = re.findall(r"```diff\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        lines = block.splitlines()
        before = "\n".join(line[1:] for line in lines if line[0] != "+")
        assert text.count(before) == 1, f"not in the file once:\n{before}"
        text = text.replace(before, "\n".join(line[1:] for line in lines if line[0] != "-"))
    return text


def test_a_new_term_is_two_lines(tmp_path, monkeypatch):
    file = tmp_path / "edited_losses.py"
    file.write_text(edited((ROOT / "training" / "engine" / "losses.py").read_text(encoding="utf-8")))
    spec = importlib.util.spec_from_file_location("edited_losses", file)
    losses = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "edited_losses", losses)
    spec.loader.exec_module(losses)
    targets = (torch.rand(1, 2, 3, 4, 4) > 0.5).float()
    logits = torch.randn(2, 1, 3, 3, 4, 4).requires_grad_()
    without = losses.router_loss_paper(logits, targets)
    weights = losses.PaperRouterWeights(indecision=0.1)
    with_it = losses.router_loss_paper(logits, targets, weights)
    assert (with_it["total"] - without["total"]).item() == pytest.approx(0.1 * with_it["indecision"].item(), rel=1e-4)
    gradients = []
    for name in ("cross_entropy", "indecision"):
        (gradient,) = torch.autograd.grad(losses.router_loss_paper(logits, targets, weights)[name], logits)
        gradients.append(gradient)
    assert gradients[1].abs().sum() > 0 and not torch.allclose(*gradients)
    confident = losses.router_loss_paper(20 * logits, targets, weights)
    assert confident["indecision"] < with_it["indecision"]
