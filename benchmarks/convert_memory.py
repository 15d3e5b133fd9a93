"""Peak memory of converting a large checkpoint: Hugging Face -> TP 2 x PP 2 -> Hugging Face, against its size.

    python benchmarks/convert_memory.py [--layers 10] [--folder DIR]

Makes a multi-shard checkpoint with the shapes of Qwen2.5-7B (10 layers: 6.8 GB, 28 layers: 15.2 GB), converts it in
processes of their own and removes it. Two figures: `ru_maxrss`, which also counts pages of the mapped input files that
the system may drop at any time, and the peak of `RssAnon`, memory that nothing but the process can give back.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import Qwen2Config

from tuneval.checkpoints.hf import HfSink, HfSource, size_of
from tuneval.console import track
from tuneval.model.weight_map import rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10, help="layers of Qwen2.5-7B's shape, 0.47 GB each")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; three times the size must fit")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Path(folder), options.layers)


def measure(folder: Path, layers: int) -> None:
    first, shards, back = folder / "hf", folder / "mcore", folder / "back"
    synthesise(first, layers)
    size = size_of(HfSource(first))
    print(f"checkpoint: {size / 1e9:.2f} GB in {len(list(first.glob('*.safetensors')))} files")
    parallel = ["--target-tensor-parallel-size", "2", "--target-pipeline-parallel-size", "2"]
    command("hf -> mcore TP 2 x PP 2", size, "convert", "--load", first, "--save", shards, "--to", "mcore", *parallel)
    command("mcore -> hf", size, "convert", "--load", shards, "--save", back, "--to", "hf")
    command("verify (tensors)", size, "verify", first, back, "--no-logits")


def synthesise(folder: Path, layers: int) -> None:
    """A checkpoint of normal deviates, another stretch of them for every tensor."""
    config = Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=layers, num_attention_heads=28,
        num_key_value_heads=4, tie_word_embeddings=False, max_position_embeddings=32768, dtype="bfloat16",
    )  # fmt: skip
    shapes = {n: s for row in rows(config) for n, s in zip(row.hf_names, row.hf_shapes)}
    values = torch.randn((1 << 24) + 4099, generator=torch.Generator().manual_seed(1)).bfloat16()
    with HfSink(folder, max_shard_bytes=2 << 30) as sink:
        config.save_pretrained(sink.folder)
        for number, (name, shape) in enumerate(track(shapes.items(), "writing", len(shapes))):
            count = torch.Size(shape).numel()
            shifted = values.roll(number * 977)
            sink.add(name, shifted.repeat(count // len(values) + 1)[:count].view(shape))


def command(label: str, size: int, *words: object) -> None:
    """Run one tuneval command and print its peak memory and time."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "tuneval", *map(str, words)], stdout=subprocess.DEVNULL)
    anonymous = 0
    while True:
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        anonymous = max(anonymous, rss_anon(process.pid))
        time.sleep(0.01)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{label}: failed with status {process.returncode}")
    seconds, peak = time.monotonic() - started, usage.ru_maxrss * 1024
    print(
        f"{label:26} {seconds:6.1f} s   peak ru_maxrss {peak / 1e9:5.2f} GB ({peak / size:4.0%} of the size), "
        f"peak RssAnon {anonymous / 1e9:5.2f} GB ({anonymous / size:4.0%})",
        flush=True,
    )


def rss_anon(pid: int) -> int:
    """Anonymous resident bytes of a process now; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


if __name__ == "__main__":
    main()
