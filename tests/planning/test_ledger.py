"""The account of memory, traffic and operations, against code whose figures are known."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from tuneval.planning.ledger import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, REDUCE_SCATTER, SEND, Ledger

KIB = 1024


@pytest.fixture
def four_processes():
    """A process group of four of which only this one, number 1, exists."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    yield
    dist.destroy_process_group()


def test_memory_from_birth_to_death():
    weight = torch.zeros(256, 4)  # 4 KiB
    with Ledger() as ledger:
        ledger.hold([weight], "parameters")
        a = torch.zeros(512)  # 2 KiB
        b = a.view(2, 256).t()  # the same memory
        c = b + 1  # 2 KiB more
        del a, b
        d = torch.zeros(256)  # 1 KiB, after the first 2 went
    assert (ledger.live, ledger.peak) == (7 * KIB, 8 * KIB)
    assert ledger.at_peak() == {"parameters": 4 * KIB, "activations": 4 * KIB}
    ledger.hold([c], "gradients")
    assert ledger.at_peak() == {"parameters": 4 * KIB, "activations": 2 * KIB, "gradients": 2 * KIB}
    assert d.numel() == 256


def test_storages_that_change_size_in_place():
    """How FSDP frees and allocates what it gathers."""
    with Ledger() as ledger:
        gathered = torch.zeros(KIB, dtype=torch.uint8)
        gathered.untyped_storage().resize_(0)
        assert ledger.live == 0
        other = torch.zeros(KIB // 2, dtype=torch.uint8)
        gathered.untyped_storage().resize_(KIB)
    assert ledger.peak == KIB + KIB // 2
    assert torch.UntypedStorage.resize_ is ledger._resize
    assert other.numel() == KIB // 2


def test_fake_tensors_count_as_real_ones():
    def work() -> None:
        x = torch.zeros(32, 16, requires_grad=True)
        (x @ torch.zeros(16, 64)).relu().sum().backward()

    with Ledger() as real:
        work()
    with FakeTensorMode(), Ledger() as fake:
        work()
    assert (fake.peak, fake.flops) == (real.peak, real.flops)


def test_operations_of_both_passes():
    x, w = torch.zeros(8, 16, requires_grad=True), torch.zeros(16, 32, requires_grad=True)
    with Ledger() as ledger:
        (x @ w).sum().backward()
    assert ledger.flops == {"forward": 2 * 8 * 16 * 32, "backward": 2 * 2 * 8 * 16 * 32}


def test_attention_on_the_cpu_has_its_operations():
    q = torch.zeros(1, 2, 64, 16, requires_grad=True)
    with Ledger() as ledger:
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    assert ledger.flops["forward"] == 2 * 2 * 2 * 64 * 64 * 16


def test_collectives(four_processes):
    names = {dist.group.WORLD.group_name: "all"}
    x, whole = torch.zeros(KIB, dtype=torch.uint8), torch.zeros(4 * KIB, dtype=torch.uint8)
    with Ledger(names.get) as ledger:
        dist.all_reduce(x)
        dist.all_gather_into_tensor(whole, x)
        dist.reduce_scatter_tensor(x, whole)
        dist.all_to_all_single(whole[:512], x[:512], [512, 0, 0, 0], [0, 512, 0, 0])
        dist.send(x, 0)
        dist.recv(x, 0)
    assert ledger.sent == {
        ("all", ALL_REDUCE): 2 * KIB * 3 // 4,
        ("all", ALL_GATHER): 3 * KIB,
        ("all", REDUCE_SCATTER): 3 * KIB,
        ("all", ALL_TO_ALL): 512,
        ("all", SEND): KIB,
    }
    assert set(ledger.calls.values()) == {1}


def test_redistributed_tensors(four_processes):
    """DTensor's own collectives, forward and backward."""
    mesh = init_device_mesh("cpu", (4,))
    local = torch.zeros(KIB // 4, requires_grad=True)  # 1 KiB
    with Ledger({mesh.get_group().group_name: "tp"}.get) as ledger:
        spread = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
        spread.redistribute(placements=[Replicate()]).to_local().sum().backward()
    assert ledger.sent == {("tp", ALL_GATHER): 3 * KIB}
