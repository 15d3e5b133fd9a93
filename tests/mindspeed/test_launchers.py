"""The entry files started as MindSpeed-LLM's scripts start them: by a relative path from another folder, on two processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from token_files import sample, write

from tuneval import cli

ROOT = Path(__file__).parents[2]
LAUNCHERS = ["torch.distributed.run", "torch.distributed.launch"]


def start(launcher, folder, entry, *words):
    """(standard output, standard error) of two processes of an entry file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    environment.pop("PYTHONPATH", None)
    port = 20000 + (os.getpid() * 7 + LAUNCHERS.index(launcher)) % 20000
    command = [sys.executable, "-m", launcher, "--nproc_per_node", "2", "--nnodes", "1", "--node_rank", "0"]
    command += ["--master_addr", "localhost", "--master_port", str(port), os.path.relpath(ROOT / entry, folder)]
    done = subprocess.run(
        [*command, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def losses(output):
    lines = [line for line in output.splitlines() if "consumed samples" in line]
    return [float(re.search(r"lm loss: (\S+)", line)[1]) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_from_another_folder(launcher, tiny_folder, tmp_path, capsys, monkeypatch):
    """Tensor parallel over two, from relative paths: each line once, and the losses of one process."""
    monkeypatch.chdir(tmp_path)
    model = os.path.relpath(tiny_folder(name="model"), tmp_path)
    write(tmp_path / "data", [sample(i, 5 + i % 9) for i in range(20)])
    words = (
        f"--load {model} --data-path data --prompt-type qwen --train-iters 3 --micro-batch-size 1 --global-batch-size 4 "
        "--lr 1e-3 --fp32 --split 100,0,0 --eval-iters 0 --log-interval 1 --finetune --no-save-optim --save"
    ).split()
    layout = ("--tensor-model-parallel-size", "2", "--sequence-parallel", "--distributed-backend", "nccl")
    output, said = start(launcher, tmp_path, "posttrain_gpt.py", *words, "two", *layout)
    assert cli.run_entry("posttrain_gpt.py", [*words, "one"]) == 0
    assert losses(output) == pytest.approx(losses(capsys.readouterr().out), rel=1e-5) and len(losses(output)) == 3
    assert output.count(" MindSpeed-LLM Arguments -") == 2 and said.count("can't be continued") == 1
    assert sorted(p.name for p in (tmp_path / "two" / "mcore" / "iter_0000003").iterdir()) == [
        "mp_rank_00",
        "mp_rank_01",
    ]
    asked = ("--load", "two", "--task", "greedy", "--max-new-tokens", "3", *layout[:2])
    answered, _ = start(launcher, tmp_path, "inference.py", *asked)
    assert answered.count("Greedy Search") == 1
