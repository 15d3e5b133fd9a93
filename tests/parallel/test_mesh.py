"""Layouts: who holds which layers, and every size that does not fit, all at once, with what would."""

from __future__ import annotations

import pytest
from conftest import tiny_config
from transformers import GPT2Config

from tuneval.config.schema import ParallelConfig
from tuneval.errors import Problems
from tuneval.parallel.mesh import Layout, Mesh, make_layout, without_effect


def layout(world_size: int, batch: int | None = None, model: dict | None = None, **sizes) -> Layout:
    problems = Problems()
    made = make_layout(ParallelConfig(**sizes), tiny_config(**(model or {})), world_size, problems, batch)
    problems.raise_if_any()
    return made


def refusals(world_size: int, batch: int | None = None, model: dict | None = None, **sizes) -> list[str]:
    problems = Problems()
    make_layout(ParallelConfig(**sizes), tiny_config(**(model or {})), world_size, problems, batch)
    return problems.messages


def test_what_is_left_of_the_processes_is_data_parallel():
    made = layout(12, tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    assert (made.tensor, made.pipeline, made.data, made.world_size) == (2, 2, 3, 12)
    assert made.layers == ((0, 1), (2, 3))
    assert str(made) == "TP 2 x PP 2 x DP 3"


def test_uneven_stages():
    assert layout(3, pipeline_model_parallel_size=3, num_layer_list="1,2,1").layers == ((0,), (1, 2), (3,))


def test_virtual_stages_go_round():
    made = layout(2, pipeline_model_parallel_size=2, num_layers_per_virtual_pipeline_stage=1)
    assert made.layers == ((0,), (1,), (2,), (3,))
    assert made.chunks_per_stage == 2
    assert [made.chunks_of(stage) for stage in range(2)] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("tp", [3, 4, 5])
def test_heads_ffn_and_vocabulary_need_not_divide(tp):
    assert layout(tp, tensor_model_parallel_size=tp).tensor == tp  # 6 heads, 2 KV heads, FFN 40, 352 words


def test_sharding():
    assert layout(2).sharding == "none"
    assert layout(2, use_distributed_optimizer=True).sharding == "optimizer"
    assert layout(2, use_distributed_optimizer=True, data_parallel_sharding="full").sharding == "full"
    assert layout(1, use_distributed_optimizer=True).sharding == "none"


def test_flags_that_change_nothing_say_so():
    flags = ParallelConfig(sequence_parallel=True, use_distributed_optimizer=True, pipeline_schedule="gpipe")
    assert without_effect(flags, layout(1)) == [
        "--sequence-parallel: no effect, --tensor-model-parallel-size is 1",
        "--pipeline-schedule gpipe: no effect, --pipeline-model-parallel-size is 1",
        "--use-distributed-optimizer: no effect, there is one data-parallel process",
    ]
    both = layout(4, tensor_model_parallel_size=2, sequence_parallel=True)
    assert without_effect(ParallelConfig(sequence_parallel=True), both) == []


@pytest.mark.parametrize(
    ("world_size", "sizes", "said"),
    [
        (8, {"tensor_model_parallel_size": 8}, "has 6 attention heads, so some processes would have none. Choose 6 or fewer"),
        (
            3,
            {"pipeline_model_parallel_size": 3},
            "4 layers, 4 % 3 = 1. Choose 1, 2 or 4, or add --num-layer-list 2,1,1",
        ),
        (5, {"pipeline_model_parallel_size": 5}, "the model has 4 layers. Choose 1, 2 or 4"),
        (2, {"pipeline_model_parallel_size": 2, "num_layer_list": "2,3"}, "adds up to 5, the model has 4. For example 2,2"),
        (2, {"pipeline_model_parallel_size": 2, "num_layer_list": "4"}, "1 stages, but"),
        (2, {"pipeline_model_parallel_size": 2, "num_layer_list": "4,0"}, "every stage needs a layer"),
        (2, {"pipeline_model_parallel_size": 2, "num_layer_list": "2;2"}, "must be whole numbers with commas"),
        (2, {"pipeline_schedule": "gpipe", "num_layers_per_virtual_pipeline_stage": 1}, "gpipe and --num-layers-per-virtual"),
        (1, {"num_layer_list": "2,2"}, "above 1; there is one stage. Leave it out"),
        (2, {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 2}, "Choose 1"),
        (4, {"pipeline_model_parallel_size": 4, "num_layers_per_virtual_pipeline_stage": 1}, "Leave it out"),
        (1, {"num_layers_per_virtual_pipeline_stage": 1}, "there is one stage"),
        (1, {"tensor_model_parallel_size": 2}, "there is one process. Start 2, 2 x 2, ... of them with --nproc-per-node"),
        (6, {"pipeline_model_parallel_size": 4}, "there are 6 processes. Start 4 or 8, or choose sizes whose product divides 6"),
        (1, {"tensor_model_parallel_size": 0}, "must be at least 1"),
        (2, {"use_distributed_optimizer": True, "data_parallel_sharding": "none"}, "give one of them"),
    ],
)  # fmt: skip
def test_a_size_that_does_not_fit_names_those_that_would(world_size, sizes, said):
    (message,) = refusals(world_size, **sizes)
    assert said in message


def test_every_process_holds_rows():
    messages = refusals(6, tensor_model_parallel_size=6, model={"intermediate_size": 4, "vocab_size": 5})
    assert ["FFN rows" in messages[0], "words" in messages[1]] == [True, True]


def test_a_model_without_these_sizes_stays_whole():
    gpt2 = GPT2Config(n_embd=48, n_head=6, n_layer=4)
    problems = Problems()
    assert make_layout(ParallelConfig(), gpt2, 2, problems).data == 2
    assert not problems.messages
    make_layout(ParallelConfig(tensor_model_parallel_size=2), gpt2, 2, problems)
    assert problems.messages == ["--tensor-model-parallel-size 2: model type gpt2 can't be cut so. Choose 1"]


def test_all_problems_at_once():
    messages = refusals(4, 1, tensor_model_parallel_size=8, pipeline_model_parallel_size=3)
    assert len(messages) == 3
    assert "--global-batch-size 1: 2 data-parallel processes need a sample each" in refusals(2, 1)[0]


def test_one_process_needs_no_grid():
    mesh = Mesh(layout(1))
    assert (mesh.grid, mesh.tp, mesh.dp, mesh.pp) == (None, None, None, None)
    assert (mesh.tp_rank, mesh.dp_rank, mesh.stage, mesh.is_first, mesh.is_last, mesh.largest(3)[0]) == (
        0,
        0,
        0,
        True,
        True,
        3,
    )


def test_ranks_are_in_megatrons_order():
    """TP fastest, then DP, then PP: rank 9 of TP 2 x DP 2 x PP 3 is the second of its TP group, the first copy, stage 2."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    made = layout(12, tensor_model_parallel_size=2, pipeline_model_parallel_size=3, num_layer_list="1,2,1")
    dist.init_process_group("fake", store=FakeStore(), rank=9, world_size=12)
    try:
        mesh = Mesh(made)
        assert (mesh.tp_rank, mesh.dp_rank, mesh.stage) == (1, 0, 2)
        assert (mesh.is_first, mesh.is_last) == (False, True)
        assert mesh.tp.mesh.tolist() == [8, 9]
        assert mesh.dp.mesh.tolist() == [9, 11]
        assert mesh.pp.mesh.tolist() == [1, 5, 9]
    finally:
        dist.destroy_process_group()
