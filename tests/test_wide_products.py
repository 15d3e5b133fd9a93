"""Products of bf16 and fp16 computed in fp32, against fp32 and torch's own."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from tuneval import wide_products

NARROW = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", autouse=True)
def exchanged():
    """As on a processor without units for these types; afterwards torch is as it was."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        wide_products.exchange(library, set(NARROW))
        yield


@pytest.fixture
def small_blocks(monkeypatch):
    for name, value in {"WHOLE_NUMBERS": 200, "BLOCK_NUMBERS": 100, "THIN": 6, "THIN_NUMBERS": 60}.items():
        monkeypatch.setattr(wide_products, name, value)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to the product in fp32 but for its order of sums, and rounded once."""
    assert found.dtype in NARROW
    torch.testing.assert_close(found.float(), expected, rtol=torch.finfo(found.dtype).eps, atol=1e-3)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found.float(), expected * 1.05, rtol=torch.finfo(found.dtype).eps, atol=1e-3)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    "m, k, n",
    [
        (9, 5, 7),
        (30, 40, 20),
        (40, 20, 70),
        (3, 90, 4),
        (1, 12, 12),
        (2, 300, 3),
        (50, 60, 4),
        (4, 60, 50),
        (60, 4, 50),
    ],
)
def test_products_of_two_matrices(small_blocks, dtype, m, k, n):
    a, b, c = (drawn(*shape, dtype=dtype) for shape in ((m, k), (k, n), (m, n)))
    product = a.float() @ b.float()
    for left, right in itertools.product((a, a.T.contiguous().T), (b, b.T.contiguous().T)):
        same(left @ right, product)
        same(torch.mm(left, right, out=torch.empty(m, n, dtype=dtype)), product)
        same(torch.mm(left, right, out=torch.empty(n, m, dtype=dtype).T), product)
        same(torch.addmm(c, left, right, alpha=0.5), c.float() + 0.5 * product)
        same(torch.addmm(c[0], left, right), c[0].float() + product)
        same(torch.addmm(c, left, right, beta=2, out=torch.empty(m, n, dtype=dtype)), 2 * c.float() + product)
        same(c.clone().addmm_(left, right), c.float() + product)


@pytest.mark.parametrize("dtype", NARROW)
def test_products_of_many_matrices(dtype):
    a, b = drawn(3, 4, 5, dtype=dtype), drawn(3, 5, 6, dtype=dtype)
    same(a @ b, a.float() @ b.float())
    same(torch.bmm(a, b, out=torch.empty(3, 4, 6, dtype=dtype)), a.float() @ b.float())


def test_a_slice_of_a_larger_tensor_is_written_in_place():
    out = torch.zeros(20, 30, dtype=torch.bfloat16)
    a, b = drawn(10, 8, dtype=torch.bfloat16), drawn(8, 30, dtype=torch.bfloat16)
    torch.mm(a, b, out=out[5:15])
    same(out[5:15], a.float() @ b.float())
    assert not out[:5].any() and not out[15:].any()


@pytest.mark.parametrize("dtype", NARROW)
def test_gradients_of_a_linear_layer_and_of_attention(dtype):
    def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        x, w, b = (drawn(*s).to(NARROW[0]).to(dtype).requires_grad_() for s in ((2, 9, 16), (16, 16), (16,)))
        y = linear(x, w, b).view(2, 9, 2, 8).transpose(1, 2)
        scaled_dot_product_attention(y, y, y, is_causal=True).float().square().sum().backward()
        return [x.grad, w.grad, b.grad]

    for found, expected in zip(gradients(dtype), gradients(torch.float32)):
        assert (found.float() - expected).norm() / expected.norm() < 8 * torch.finfo(dtype).eps


def test_what_is_no_product_is_refused_by_torch():
    a, b = drawn(4, 5, dtype=torch.bfloat16), drawn(6, 7, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        a @ b
    with pytest.raises(RuntimeError, match="must be a matrix"):
        torch.mm(a[0], b)
    with pytest.raises(RuntimeError, match="same dtype"):
        torch.mm(a, b.float()[:5])
    with pytest.raises(RuntimeError, match="Float"):
        torch.mm(a, b[:5], out=torch.empty(4, 7))
    with pytest.raises(RuntimeError, match="Float"):
        torch.bmm(a[None], b[None, :5].float())
    with pytest.raises(RuntimeError, match="Float"):
        torch.addmm(torch.zeros(7), a, b[:5])
    assert (a[:0] @ b[:5]).shape == (0, 7) and not (a[:, :0] @ b[:0]).any()


def test_what_is_left_to_torch_is_torchs_own(monkeypatch):
    left = []
    monkeypatch.setattr(wide_products, "_takes", lambda a, b: left.append(a.shape) or False)
    a, b, c = (drawn(*shape, dtype=torch.bfloat16) for shape in ((9, 5), (5, 7), (7,)))
    same(a @ b, a.float() @ b.float())
    same(torch.addmm(c, a, b), torch.addmm(c.float(), a.float(), b.float()))
    assert set(left) == {(9, 5)}


def test_other_types_are_torchs_own():
    a, b = drawn(20, 30), drawn(30, 40)
    torch.testing.assert_close(a @ b, (a.double() @ b.double()).float())  # a few units of fp32's last digit
    assert (torch.ones(3, 4, dtype=torch.int64) @ torch.ones(4, 5, dtype=torch.int64)).eq(4).all()


def test_nothing_is_exchanged_where_the_processor_multiplies_bf16(monkeypatch):
    monkeypatch.setattr(wide_products, "multiplies", lambda dtype: True)
    monkeypatch.setattr(wide_products, "exchange", lambda *_: pytest.fail("exchanged"))
    assert wide_products.widen_products.__wrapped__() is False
