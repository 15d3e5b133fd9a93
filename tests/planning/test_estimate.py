"""Rehearsals against what real processes of the same model hold and send; figures of large jobs by hand."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_config

from tuneval.config.schema import OptimStateConfig, ParallelConfig
from tuneval.errors import Problems
from tuneval.model.lora import LoraSettings
from tuneval.parallel.mesh import make_layout
from tuneval.planning.estimate import Job, Speed, estimate, with_layers
from tuneval.planning.rehearsal import Rehearsals
from tuneval.planning.search import MARGIN, candidates, cheapest, fits, least_peak

SPEED = Speed(flops=1e9, link=1e12)


@pytest.fixture(scope="module")
def rehearsals():
    return Rehearsals()


def job(**changes) -> Job:
    values = {
        "hf_config": tiny_config(num_hidden_layers=8),
        "dtype": torch.float32,
        "lora": None,
        "recompute": None,
        "global_batch_size": 8,
        "sample_tokens": 64,
        "mean_tokens": 64.0,
        "micro_batch_tokens": 128,
    }
    return Job(**{**values, **changes})


def layout(world_size: int, **flags):
    problems = Problems()
    made = make_layout(ParallelConfig(**flags), tiny_config(num_hidden_layers=8), world_size, problems)
    problems.raise_if_any()
    return made


def parameters(config) -> int:
    from tuneval.model.build import empty_model

    return sum(p.numel() for p in empty_model(config, torch.float32).parameters())


def test_one_process_in_full(rehearsals):
    plan = estimate(job(), layout(1), rehearsals)
    (account,) = plan.stages
    whole = parameters(job().hf_config)
    assert account.trained == whole
    assert account.memory["parameters"] == account.gradients == 4 * whole
    assert account.memory["optimizer"] == 8 * whole
    assert plan.micro_batches == 4
    assert plan.sent == {}


def test_stages_share_the_layers_and_pass_hidden_states(rehearsals):
    plan = estimate(job(), layout(4, pipeline_model_parallel_size=4), rehearsals)
    assert sum(s.trained for s in plan.stages) == parameters(job().hf_config)
    hidden = 4 * 128 * 48  # fp32, [1, 128, 48]
    assert plan.sent["pp", "send"] // hidden == 2 * plan.micro_batches, "a middle stage sends forward and backward"
    assert plan.passes(SPEED).bubble > 0.1
    first, last = plan.stages[0], plan.stages[-1]
    assert last.forward_flops > first.forward_flops, "the head"


def test_a_tied_embedding_lies_on_the_first_and_the_last_stage(rehearsals):
    config = tiny_config(num_hidden_layers=8, tie_word_embeddings=True)
    plan = estimate(job(hf_config=config), layout(2, pipeline_model_parallel_size=2), rehearsals)
    tied = config.vocab_size * config.hidden_size
    assert sum(s.trained for s in plan.stages) == parameters(config) + tied
    norm = 8  # a number or two
    assert plan.sent["all", "all-reduce"] == pytest.approx(4 * tied, abs=4 * norm)


def test_tensor_parallel_processes_share_weights_and_meet_four_times_a_layer(rehearsals):
    plan = estimate(job(), layout(2, tensor_model_parallel_size=2), rehearsals)
    one = estimate(job(), layout(1), rehearsals)
    assert plan.stages[0].memory["parameters"] < 0.52 * one.stages[0].memory["parameters"]
    hidden = 4 * 128 * 48
    per_layer = 4 * hidden  # all-reduces of ring size 2 * (2 - 1) / 2
    assert plan.sent["tp", "all-reduce"] == pytest.approx(plan.micro_batches * 8 * per_layer, rel=0.2)


def test_heads_that_do_not_divide_are_passed_on_by_halves(rehearsals):
    """6 heads of 8 on 4 processes: 12 rows each; the first computes two heads, so 4 columns come and go."""
    plan = estimate(job(), layout(4, tensor_model_parallel_size=4), rehearsals)
    columns = 4 * 128 * 4  # fp32, 128 tokens
    sent = plan.sent["tp", "all-to-all"]
    assert sent == plan.micro_batches * 8 * 2 * columns, "to it q's backward and the attention's forward, in 8 layers"
    assert plan.stages[0].memory["parameters"] < 4 * parameters(job().hf_config) / 3, (
        "k and v whole, the rest a quarter"
    )


def test_data_parallel_processes_sum_gradients_once(rehearsals):
    plan = estimate(job(), layout(4), rehearsals)
    assert plan.micro_batches == 1
    assert plan.sent["dp", "all-reduce"] == pytest.approx(2 * 3 / 4 * 4 * parameters(job().hf_config), rel=0.01)
    sharded = estimate(job(), layout(4, data_parallel_sharding="full"), rehearsals)
    assert {kind for axis, kind in sharded.sent if axis == "dp"} >= {"all-gather", "reduce-scatter"}


def test_what_data_parallel_processes_split(rehearsals):
    whole = 4 * parameters(job().hf_config)
    many = job(global_batch_size=32)
    for sharding, weights, gradients in (("none", 1, 1), ("optimizer", 1 + 1 / 4, 1), ("full", 1 / 4, 1 / 4)):
        (account,) = estimate(many, layout(4, data_parallel_sharding=sharding), rehearsals).stages
        assert account.memory["optimizer"] == 2 * whole / (1 if sharding == "none" else 4)
        assert account.memory["gradients"] == gradients * whole
        gathered = account.memory["parameters"] / whole - weights
        assert 0.1 < gathered < 0.3 if sharding == "full" else gathered == 0, "a layer, and the head for the loss"


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"pipeline_model_parallel_size": 4},
        {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 2},
        {"data_parallel_sharding": "optimizer", "pipeline_model_parallel_size": 2},
    ],
    ids=str,
)
def test_further_micro_batches_need_no_more_memory(flags, rehearsals, monkeypatch):
    """What a plan rehearses against every micro-batch of the step."""
    many, spread = job(global_batch_size=32), layout(4 if flags else 1, **flags)
    some = estimate(many, spread, rehearsals)
    assert some.scale > 1.5
    monkeypatch.setattr("tuneval.planning.estimate._enough", lambda count, layout: count)
    every = estimate(many, spread, rehearsals)
    small = 16 * 28 * 128  # ids, targets, weights and positions of 16 micro-batches of 128 tokens
    for planned, needed in zip(some.stages, every.stages):
        assert needed.peak - small <= planned.peak <= needed.peak
    assert some.sent == pytest.approx(every.sent, rel=0.01, abs=100)
    assert some.step_flops == pytest.approx(every.step_flops)


def test_recompute_trades_memory_for_operations(rehearsals):
    kept, again = (estimate(job(recompute=r), layout(1), rehearsals) for r in (None, "full"))
    assert again.stages[0].memory["activations"] < kept.stages[0].memory["activations"]
    assert again.stages[0].backward_flops > 1.3 * kept.stages[0].backward_flops


def test_lora_keeps_state_for_its_adapters_alone(rehearsals):
    plan = estimate(job(lora=LoraSettings(2, 4.0)), layout(2, pipeline_model_parallel_size=2), rehearsals)
    full = estimate(job(), layout(2, pipeline_model_parallel_size=2), rehearsals)
    assert plan.stages[0].memory["optimizer"] == 8 * plan.stages[0].trained
    assert plan.stages[0].trained < full.stages[0].trained / 5
    assert plan.step_flops < full.step_flops


def test_what_the_optimizers_keep_of_bf16_weights(rehearsals):
    """Bytes a parameter, from matrices of whole blocks; norms are few."""
    wide = tiny_config(hidden_size=128, intermediate_size=256, num_attention_heads=16, num_key_value_heads=8)
    count = parameters(wide)
    kept = {}
    for name, optim in {
        "fp32": OptimStateConfig(),
        "bf16 sums": OptimStateConfig(main_grads_dtype="bf16"),
        "8 bits": OptimStateConfig(optimizer="adam8bit"),
    }.items():
        (account,) = estimate(job(hf_config=wide, dtype=torch.bfloat16, optim=optim), layout(1), rehearsals).stages
        kept[name] = (account.memory["optimizer"] / count, account.gradients / count)
    assert kept["fp32"] == (10, 4)  # two moments and the master's lower half
    assert kept["bf16 sums"] == (10, 2)
    assert kept["8 bits"] == (pytest.approx(2 + 2 * 4 / 64, rel=0.05), 2)


def test_memory_is_linear_in_layers(rehearsals):
    wide = layout(2, pipeline_model_parallel_size=2)
    whole = estimate(job(), wide, rehearsals)
    assert least_peak(job(), wide, rehearsals) == pytest.approx(whole.peak, rel=0.02)
    small, spread = with_layers(job(), wide, 1)
    assert small.hf_config.num_hidden_layers == 2 and spread.layers == ((0,), (1,))
    uneven = layout(3, pipeline_model_parallel_size=3, num_layer_list="3,3,2")
    assert least_peak(job(), uneven, rehearsals) == pytest.approx(estimate(job(), uneven, rehearsals).peak, rel=0.02)
    wider, _ = with_layers(job(), uneven, 3)
    assert len(wider.hf_config.layer_types) == 9, "more than the model has"


def test_a_peak_that_few_layers_do_not_show(rehearsals):
    """With one and two layers memory peaks at the large head, with eight at the end of the backward pass."""
    config = tiny_config(num_hidden_layers=8, vocab_size=20_000, intermediate_size=2_000)
    large_head = job(hf_config=config, recompute="full", micro_batch_tokens=64, global_batch_size=1)
    whole = estimate(large_head, layout(1), rehearsals).peak
    least = least_peak(large_head, layout(1), rehearsals)
    assert least < 0.95 * whole
    between, told = (least + whole) / 2, []
    memory = int(between / (1 - MARGIN))
    assert cheapest(large_head, 1, 1, memory, SPEED, rehearsals, lambda *verdict: told.append(verdict)) is None
    assert ("full", whole, True) in [(candidate.recompute, peak, exact) for candidate, peak, exact in told]


def test_the_cheapest_that_fits(rehearsals):
    alone = estimate(job(), layout(1), rehearsals).peak
    roomy = cheapest(job(), 2, 2, 4 * alone, SPEED, rehearsals)
    assert roomy is not None and (roomy[0].layout.data, roomy[0].layout.sharding) == (2, "none")
    tight = cheapest(job(), 2, 2, int(0.8 * alone), SPEED, rehearsals)
    assert tight is not None and fits(tight[1].peak, int(0.8 * alone))
    assert str(tight[0].layout) != str(roomy[0].layout)
    assert cheapest(job(), 2, 2, alone // 20, SPEED, rehearsals) is None


def test_candidates_are_layouts_that_training_takes():
    found = {(str(c.layout), c.recompute) for c in candidates(job(), 4, 2)}
    assert ("TP 2 with SP x PP 2 x DP 1", None) in found and ("TP 1 x PP 1 x DP 4 (full sharded)", "full") in found
    assert not any(name.startswith("TP 4") for name, _ in found), "more than a node has"
