"""One command from one process to many: what `accelerate launch` takes, and what it gives.

DeepSpeed itself runs on GPUs alone, and no test has one; what is here is all of it that a CPU can check.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin
from click.testing import CliRunner
from PIL import Image

import llamavid.train
from llamavid.cli import main
from llamavid.model.llamavid import model_from_checkpoint
from llamavid.train.forward import Loss
from llamavid.train.processes import prepared
from tests.conftest import GOLDEN, golden_checkpoint

ZERO2 = Path(llamavid.train.__file__).parent / "zero2.yaml"
ITEMS = 9


def test_accelerate_reads_the_configuration_of_zero_2() -> None:
    config = load_config_from_file(str(ZERO2))
    assert config.distributed_type == "DEEPSPEED"
    assert config.mixed_precision == "bf16"
    assert config.deepspeed_config["zero_stage"] == 2


def test_deepspeed_s_settings_are_those_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config_from_file(str(ZERO2))
    for name, value in config.deepspeed_config.items():  # as the launcher hands them to its processes
        monkeypatch.setenv(
            f"ACCELERATE_{'' if name.startswith('grad') else 'DEEPSPEED_'}{name.upper()}", str(value)
        )
    plugin = DeepSpeedPlugin()
    settings = plugin.deepspeed_config
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["gradient_accumulation_steps"] == 1  # a step is ours to decide
    assert "optimizer" not in settings
    assert settings["train_micro_batch_size_per_gpu"] == "auto"


def test_positions_keep_their_precision_when_the_weights_are_cast() -> None:
    class Casting:  # what DeepSpeed's engine does to a module
        device = torch.device("cpu")

        def prepare(self, loss: Loss, optimizer: torch.optim.Optimizer) -> tuple[Loss, torch.optim.Optimizer]:
            return loss.bfloat16(), optimizer

    loss = Loss(model_from_checkpoint(golden_checkpoint("short-video")))
    exact = loss.model.language.model.rotary_emb.inv_freq.clone()
    optimizer = torch.optim.AdamW(loss.parameters())
    prepared(cast(Accelerator, Casting()), loss, optimizer)
    assert loss.model.compressor.key_projector.weight.dtype == torch.bfloat16
    assert torch.equal(loss.model.language.model.rotary_emb.inv_freq, exact)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pictures, turns without any, and a clip that is none."""
    items: list[dict[str, object]] = []
    for index in range(ITEMS):
        Image.new("RGB", (40, 30), (20 * index, 0, 99)).save(tmp_path / f"{index}.png")
        asked = f"what color is {index}?"
        for media in ({"image": f"{index}.png"}, {}) if index else ({"video": "none.mp4"},):
            said = [
                {"from": "human", "value": f"<image>\n{asked}" if media else asked},
                {"from": "gpt", "value": ("red", "blue", "green")[index % 3]},
            ]
            items.append({"id": f"{index}", **media, "conversations": said})
    (tmp_path / "none.mp4").write_bytes(b"this is no video")
    (tmp_path / "data.json").write_text(json.dumps(items))
    return tmp_path / "data.json"


def arguments(data: Path, output: Path) -> list[str]:
    short = GOLDEN / "short-video"
    settings = {
        "checkpoint": short / "checkpoint",
        "vision_tower": short / "eva_vit_g.pth",
        "text_tokenizer": short / "bert-base-uncased",
        "image_processor": short / "image_processor",
        "data": data,
        "output": output,
        "batch_size": 4,
        "micro_batch": 1,
        "broken_limit": 0.1,
        "learning_rate": 1e-3,
        "gradient_checkpointing": "true",
    }
    return [
        "train",
        "stage2",
        *(word for name, value in settings.items() for word in ("--set", f"{name}={value}")),
    ]


def losses(output: Path) -> list[float]:
    return [float(line.split(",")[2]) for line in (output / "loss.csv").read_text().splitlines()[1:]]


def test_two_processes_give_the_losses_of_one(data: Path, tmp_path: Path) -> None:
    alone = CliRunner().invoke(main, [*arguments(data, tmp_path / "alone"), "--json"])
    assert alone.exit_code == 0, alone.output
    summary = json.loads(alone.stdout)
    assert (summary["steps"], summary["broken_samples"], summary["precision"]) == (5, 1, "fp32")
    # `accelerate launch --cpu` starts one process whatever it is told; torchrun starts as many.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "llamavid"]
    launched = subprocess.run(
        [*launch, *arguments(data, tmp_path / "two")],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert launched.returncode == 0, launched.stderr[-3000:]
    assert launched.stdout.count("Next: llamavid export") == 1
    assert json.loads((tmp_path / "two" / "training.json").read_text())["processes"] == 2
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "alone"), rtol=2e-5)
    reports = [(tmp_path / name / "broken.json").read_text() for name in ("alone", "two")]
    assert reports[0] == reports[1]
    assert "none.mp4" in reports[0]
