"""What tensor parallelism refuses: a plan that has no place for a parameter, or asks for what can't be done."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from conftest import tiny_config
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from tuneval.errors import UserError
from tuneval.model.build import empty_model
from tuneval.parallel.tensor import tensor_parallel


@pytest.fixture
def mesh():
    """Two processes, of which only this one is there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def model(**plan: str | None):
    """A tiny model whose plan is changed: pattern -> kind, None: not in the plan."""
    config = tiny_config()
    changed = {
        **config.base_model_tp_plan,
        **{f"layers.*.{name.replace('__', '.')}": kind for name, kind in plan.items()},
    }
    config.base_model_tp_plan = {pattern: kind for pattern, kind in changed.items() if kind is not None}
    return empty_model(config, torch.float32)


def test_every_parameter_has_a_place(mesh):
    spread = model()
    tensor_parallel(spread, mesh)
    assert all(isinstance(p, DTensor) for p in spread.parameters())


def test_parameters_without_a_place_are_named(mesh):
    with pytest.raises(UserError) as told:
        tensor_parallel(model(self_attn__v_proj=None), mesh)
    for layer in range(4):
        for leaf in ("weight", "bias"):
            assert f"model.layers.{layer}.self_attn.v_proj.{leaf}" in str(told.value)
    assert "q_proj" not in str(told.value) and "--tensor-model-parallel-size 1" in str(told.value)


def test_a_parameter_of_a_module_that_no_plan_knows_is_named(mesh):
    strange = model()
    strange.model.layers[2].mlp.gain = torch.nn.Parameter(torch.ones(3, device="meta"))
    with pytest.raises(UserError, match=r"has no place for model\.layers\.2\.mlp\.gain\. Use"):
        tensor_parallel(strange, mesh)


def test_a_kind_of_layer_that_can_not_be_spread_is_told(mesh):
    with pytest.raises(UserError, match=r'has "local_packed" for model\.layers\.0\.mlp\.gate_proj'):
        tensor_parallel(model(mlp__gate_proj="local_packed"), mesh)


def test_an_embedding_that_does_more_than_look_up_is_told(mesh):
    class Scaled(torch.nn.Embedding):
        """As Gemma's, without a buffer that would be missed elsewhere."""

        def forward(self, ids):
            return super().forward(ids) * 7

    strange = model()
    strange.model.embed_tokens.__class__ = Scaled
    with pytest.raises(
        UserError, match=r"model type qwen2: its embedding is a Scaled; .*--tensor-model-parallel-size 1"
    ):
        tensor_parallel(strange, mesh)
