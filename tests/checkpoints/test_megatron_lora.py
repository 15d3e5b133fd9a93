"""LoRA in Megatron's form: read, merged, written, exported; what the rank files compute is what peft computes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import tiny_model
from megatron_forward import IDS, megatron_logits
from peft import PeftModel
from safetensors.torch import load_file

from tuneval import cli
from tuneval.checkpoints.convert import to_hf, to_mcore
from tuneval.checkpoints.hf import HfSource
from tuneval.checkpoints.layout import plan_layout
from tuneval.checkpoints.load import open_adapter, open_source
from tuneval.checkpoints.megatron_lora import LoraForm
from tuneval.errors import UserError
from tuneval.model.adapter import read_peft
from tuneval.model.build import build_model
from tuneval.model.lora import LoraSettings, add_lora, save_adapter

SHARED = LoraSettings(r=3, alpha=6.0, shared_a=True)
SEPARATE = LoraSettings(r=2, alpha=3.0, targets=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj"))
FUSED = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
LAYOUTS = [(1, 1, None), (2, 2, None), (4, 3, "1,2,1"), (8, 1, None)]
TARGETS = ["decoder.layers.{}." + name for name in
           ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")]  # fmt: skip


def adapted(folder, settings, family="qwen2"):
    """(Hugging Face folder, PEFT folder): a tiny model and an adapter whose B is not 0."""
    model = tiny_model(family)
    model.save_pretrained(folder / "hf")
    lora = add_lora(build_model(model.config, lambda n: model.state_dict()[n].clone(), torch.float32), settings, 1)
    with torch.no_grad():
        for number, (name, p) in enumerate(lora.named_parameters()):
            if ".lora_B." in name:
                p.copy_(torch.sin(torch.arange(p.numel()) * 0.3 + number).view_as(p) * 0.1)
    save_adapter(lora, settings, folder / "adapter", str(folder / "hf"))
    return folder / "hf", folder / "adapter"


def peft_logits(hf, adapter):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(hf), adapter).eval()(IDS).logits


def write(hf, adapter, folder, layout, filtered=False):
    source = HfSource(hf)
    form = LoraForm(read_peft(adapter), source.config, filtered)
    to_mcore(source, folder, plan_layout(source.config, *layout), lora=form)
    return form


def merged_logits(source, folder):
    from transformers import AutoModelForCausalLM

    to_hf(source, folder)
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("settings", "family"), [(SHARED, "qwen2"), (SHARED, "llama"), (SEPARATE, "qwen3")])
def test_rank_files_compute_what_peft_computes(tmp_path, settings, family, layout):
    hf, adapter = adapted(tmp_path, settings, family)
    write(hf, adapter, tmp_path / "mcore", layout)
    expected = peft_logits(hf, adapter)
    close(megatron_logits(tmp_path / "mcore"), expected)
    close(merged_logits(open_source(tmp_path / "mcore"), tmp_path / "merged"), expected)
    plain = merged_logits(HfSource(hf), tmp_path / "plain")
    assert (plain - expected).abs().max() > 0.01  # the adapter matters


@pytest.mark.parametrize("wrong", ["B of q, k, v in another order", "A of another rank", "alpha"])
def test_parity_notices_a_wrong_file(tmp_path, wrong):
    hf, adapter = adapted(tmp_path, SHARED)
    write(hf, adapter, tmp_path / "mcore", (2, 1, None))
    for file in (tmp_path / "mcore").rglob("*.pt"):
        state = torch.load(file, weights_only=False)
        for name, tensor in state["model"].items():
            if wrong.startswith("B") and name.endswith("linear_qkv.lora_B.default.weight"):
                state["model"][name] = tensor.roll(8, 0)
            if wrong.startswith("A") and name.endswith("linear_fc2.lora_A.default.weight"):
                state["model"][name] = tensor.flip(0)
        state["args"].lora_alpha *= 2 if wrong == "alpha" else 1
        torch.save(state, file)
    with pytest.raises(AssertionError):
        close(megatron_logits(tmp_path / "mcore"), peft_logits(hf, adapter))


def test_names_and_shapes_are_mindspeeds(tmp_path):
    """Reference, section 2."""
    hf, adapter = adapted(tmp_path, SHARED)
    write(hf, adapter, tmp_path / "mcore", (2, 1, None))
    files = [torch.load(f, weights_only=False) for f in sorted((tmp_path / "mcore").rglob("*.pt"))]
    model, args = files[0]["model"], files[0]["args"]
    for target in TARGETS:
        stem = target.format(3)
        assert {n for n in model if n.startswith(stem)} == {
            f"{stem}.base_layer.weight", f"{stem}.lora_A.default.weight", f"{stem}.lora_B.default.weight",
            *([f"{stem}.base_layer.bias"] if "qkv" in stem else []),
        }  # fmt: skip
    shapes = {n.rsplit(".", 4)[1] + n[-16]: tuple(t.shape) for n, t in model.items() if "layers.3" in n and "lora" in n}
    assert shapes == {
        "linear_qkvA": (3, 48), "linear_qkvB": (40, 3), "linear_projA": (3, 24), "linear_projB": (48, 3),
        "linear_fc1A": (3, 48), "linear_fc1B": (40, 3), "linear_fc2A": (3, 20), "linear_fc2B": (48, 3),
    }  # fmt: skip
    name = "decoder.layers.1.self_attention.linear_qkv.lora_A.default.weight"
    assert torch.equal(files[0]["model"][name], files[1]["model"][name])
    assert (args.lora_r, args.lora_alpha, args.lora_target_modules) == (3, 6, FUSED)


def test_an_adapter_alone(tmp_path):
    hf, adapter = adapted(tmp_path, SHARED)
    write(hf, adapter, tmp_path / "lora", (2, 2, None), filtered=True)
    first = torch.load(next((tmp_path / "lora").rglob("*.pt")), weights_only=False)
    assert all(".lora_" in name for name in first["model"]) and len(first["model"]) == 2 * 4 * 2
    with pytest.raises(UserError, match="holds an adapter alone"):
        open_source(tmp_path / "lora")
    source = open_adapter(tmp_path / "lora", HfSource(hf))
    close(merged_logits(source, tmp_path / "merged"), peft_logits(hf, adapter))


def test_a_missing_rank_of_an_adapter_alone_is_told_as_one(tmp_path):
    hf, adapter = adapted(tmp_path, SHARED)
    write(hf, adapter, tmp_path / "lora", (4, 1, None), filtered=True)
    shutil.rmtree(tmp_path / "lora/iter_0000001/mp_rank_03")
    with pytest.raises(UserError, match=r"tensor_model_parallel_size = 4, config\.json and the folder say 3"):
        open_adapter(tmp_path / "lora", HfSource(hf))


def test_separate_a_are_stacked_at_a_higher_rank(tmp_path):
    hf, adapter = adapted(tmp_path, SEPARATE)
    form = write(hf, adapter, tmp_path / "mcore", (1, 1, None))
    assert (form.r, form.alpha) == (6, 9.0) and form.args["lora_target_modules"] == FUSED[:3]


def test_files_of_a_trainer_are_read(tmp_path):
    """Extra states that are None, an optimizer, a distributed optimizer's own file beside."""
    hf, adapter = adapted(tmp_path, SHARED)
    write(hf, adapter, tmp_path / "mcore", (2, 1, None))
    for file in (tmp_path / "mcore").rglob("*.pt"):
        state = torch.load(file, weights_only=False)
        state["model"] = {f"{n.rpartition('.')[0]}._extra_state": None for n in state["model"]} | state["model"]
        state["optimizer"] = {"optimizer": {"param_groups": [{"lr": 1e-6, "betas": (0.9, 0.95)}]}}
        torch.save(state, file)
        (file.parent / "distrib_optim.pt").write_bytes(b"no zip, and never opened")
    close(merged_logits(open_source(tmp_path / "mcore"), tmp_path / "merged"), peft_logits(hf, adapter))


def rewrite(folder, change):
    for file in folder.rglob("*.pt"):
        state = torch.load(file, weights_only=False)
        change(state)
        torch.save(state, file)


def test_what_is_stated_is_held_against_the_files(tmp_path, capsys):
    hf, adapter = adapted(tmp_path, SHARED)
    write(hf, adapter, tmp_path / "mcore", (1, 1, None))
    words = ["--load", str(tmp_path / "mcore"), "--save", str(tmp_path / "out"), "--to", "hf", "--lora-r", "8"]
    assert cli.run("convert", [*words, "--lora-alpha", "16"]) == 2
    error = capsys.readouterr().err
    assert (
        "--lora-r 8: " in error and "rank 3" in error and "--lora-alpha 16.0: " in error and "trained with 6" in error
    )
    assert cli.run("convert", [*words[:-2], "--lora-target-modules", "linear_qkv"]) == 2
    assert f"holds adapters of {' '.join(sorted(FUSED))}" in capsys.readouterr().err
    rewrite(tmp_path / "mcore", lambda state: delattr(state["args"], "lora_alpha"))
    assert cli.run("convert", words[:-2]) == 2
    assert "does not say its alpha. Give the training's with --lora-alpha" in capsys.readouterr().err
    assert cli.run("convert", [*words[:-2], "--lora-alpha", "6"]) == 0


@pytest.mark.parametrize("broken", ["missing", "shape", "extra", "layer"])
def test_broken_adapters_are_named(tmp_path, broken):
    hf, adapter = adapted(tmp_path, SHARED)
    write(hf, adapter, tmp_path / "mcore", (1, 1, None))
    name = "decoder.layers.2.mlp.linear_fc1.lora_B.default.weight"

    def change(state):
        model = state["model"]
        if broken == "missing":
            del model[name]
        elif broken == "shape":
            model[name] = model[name][:-2].clone()
        elif broken == "extra":
            model["decoder.layers.2.mlp.router.lora_A.default.weight"] = torch.ones(3, 48)
        else:
            for key in [n for n in model if "layers.3." in n and ".lora_" in n]:
                del model[key]

    rewrite(tmp_path / "mcore", change)
    text = {
        "missing": "linear_fc1.lora_B of layer 2: missing on a rank",
        "shape": r"linear_fc1.lora_B of layer 2: .* not \[80, 3\]",
        "extra": "left over: decoder.layers.2.mlp.router.lora_A",
        "layer": "LoRA in 3 layers, the model has 4",
    }[broken]
    with pytest.raises(UserError, match=text):
        open_source(tmp_path / "mcore")


def test_commands_carry_it_both_ways(tmp_path, capsys):
    """PEFT -> Megatron at TP 2 -> PEFT: A shared, B split by group, the same logits; convert and export."""
    hf, adapter = adapted(tmp_path, SHARED)
    load = ["--load", str(hf), "--lora-load", str(adapter), "--to", "mcore", "--target-tensor-parallel-size", "2"]
    assert cli.run("convert", [*load, "--keep-lora", "--save", str(tmp_path / "mcore")]) == 0
    assert "--lora-r 3 --lora-alpha 6 --lora-target-modules linear_qkv" in capsys.readouterr().err
    assert cli.run("convert", [*load, "--lora-ckpt-filter", "--save", str(tmp_path / "alone")]) == 0
    close(megatron_logits(tmp_path / "mcore"), peft_logits(hf, adapter))
    peft = ["--to", "peft", "--save"]
    assert cli.run("export", ["--load", str(tmp_path / "mcore"), *peft, str(tmp_path / "a")]) == 0
    words = ["--load", str(hf), "--lora-load", str(tmp_path / "alone")]
    assert cli.run("convert", [*words, *peft, str(tmp_path / "b")]) == 0
    before = load_file(adapter / "adapter_model.safetensors")
    for folder in (tmp_path / "a", tmp_path / "b"):
        after = load_file(folder / "adapter_model.safetensors")
        assert list(after) == list(before) and all(torch.equal(after[n], before[n]) for n in before)
        close(peft_logits(hf, folder), peft_logits(hf, adapter))
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 6, str(hf))


def test_from_layout_to_layout_unmerged(tmp_path):
    hf, adapter = adapted(tmp_path, SHARED)
    write(hf, adapter, tmp_path / "first", (4, 1, None))
    words = ["--load", str(tmp_path / "first"), "--save", str(tmp_path / "second"), "--to", "mcore", "--keep-lora"]
    assert cli.run("convert", [*words, "--target-pipeline-parallel-size", "2"]) == 0
    write(hf, adapter, tmp_path / "direct", (1, 2, None))
    for file in (tmp_path / "direct").rglob("*.pt"):
        expected, found = (torch.load(tmp_path / d / file.relative_to(tmp_path / "direct"), weights_only=False)
                           for d in ("direct", "second"))  # fmt: skip
        assert list(expected["model"]) == list(found["model"])
        assert all(torch.equal(expected["model"][n], found["model"][n]) for n in expected["model"])
