"""The published recipes on two processes, narrow but with all layers, losses and stages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from tests.training.run_parts import SCRIPT, finish, write_data
from tests.training.stage_parts import SMALL

WIDTHS = (
    "num_attention_heads", "attention_head_dim", "time_embed_dim", "text_embed_dim", "cross_attn_num_heads",
    "cross_attn_dim_head", "lfe_dim", "lfe_dim_head", "lfe_heads", "lfe_num_id_token", "lfe_num_queries",
    "lfe_output_dim", "lfe_ff_mult", "lfe_vit_dim", "lfe_id_dim", "lfe_hidden_dim", "router_dim", "router_heads",
    "audio_dim", "audio_heads", "audio_dim_head", "audio_blocks", "audio_channels", "audio_hidden_dim",
    "audio_context_tokens",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "stage"),
    [("cogvideox5b", 1), ("cogvideox5b", 2), ("cogvideox5b", 3), ("cogvideox5b_official", 3), ("paper", 3)],
)
def test_dry_run_on_two_processes(tmp_path: Path, recipe: str, stage: int) -> None:
    """Two steps with finite losses, and nothing is written."""
    narrow = {"extends": recipe, "model": {name: SMALL[name] for name in WIDTHS}}
    (tmp_path / "narrow.yaml").write_text(yaml.safe_dump(narrow))
    data = write_data(tmp_path / "data", ((2, 3), (1, 3)), channels=16)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    given = {"stage": stage, "recipe": tmp_path / "narrow.yaml", "data": data, "output": tmp_path / "run"}
    given |= {"dry-run": 2, "batch-size": 2, "threads": 1, "mixed-precision": "bf16"}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    output = finish([*launcher, *words, "--gradient-checkpointing"])
    summary = output.strip().splitlines()[-1]
    assert "steps 2 " in summary and "skipped 0" in summary and "nan" not in summary, output[-3000:]
    assert "num_layers: 42" in output and not (tmp_path / "run").exists()
