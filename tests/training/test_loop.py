"""One step against transformers and torch's AdamW, many steps against other packings, and the ways a step can fail."""

import copy

import pytest
import torch
from conftest import fill, tiny_model
from peft import LoraConfig, get_peft_model
from token_files import sample, write

from tuneval.config.schema import BatchConfig, OptimConfig, PrecisionConfig
from tuneval.data.batches import global_batches, make_global_batch, sample_order
from tuneval.model.build import build_model
from tuneval.model.decoder import Decoder
from tuneval.model.lora import LoraSettings, add_lora
from tuneval.training.loop import NotFinite, OneProcess, Progress, train
from tuneval.training.loss_scale import LossScaler
from tuneval.training.optim import make_optimizer
from tuneval.training.schedule import Schedule

OPTIM = OptimConfig(lr=1e-3, weight_decay=0.1, clip_grad=0.5, lr_decay_style="linear", adam_eps=1e-6)
LENGTHS = (5, 9, 3, 7, 12, 4, 6, 8, 11, 10, 4, 13)


@pytest.fixture
def dataset(tmp_path):
    return write(tmp_path / "data", [sample(i, n) for i, n in enumerate(LENGTHS)])


def decoder_of(model, dtype=torch.float32):
    state = model.state_dict()
    return Decoder(build_model(model.config, lambda name: state[name].clone(), dtype))


def run(decoder, dataset, steps=6, batch=None, optim=OPTIM, precision=None, progress=None, optimizer=None):
    """Steps of 4 samples from `progress` on; returns them and the optimizer."""
    batch = batch or BatchConfig(global_batch_size=4)
    progress = progress or Progress()
    optimizer = optimizer or make_optimizer(decoder.named_parameters(), optim)
    scaler = LossScaler(precision or PrecisionConfig(fp32=True))
    order = sample_order(len(dataset), steps * 4, 1234, True)
    batches = global_batches(dataset, order, batch, 64, start=progress.samples)
    return list(train(OneProcess(decoder), batches, optimizer, Schedule(optim, steps, 4), scaler, progress)), optimizer


def transformers_step(model, dataset, sample_ids):
    """Loss, gradient norm and updated weights of one step by transformers' loss and torch's optimizer."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total, count = 0.0, 0
    for i in sample_ids:
        ids, labels = (torch.from_numpy(x.copy()).long()[None] for x in (dataset[i].input_ids, dataset[i].labels))
        trained = int((labels[0, 1:] != -100).sum())
        total, count = total + model(ids, labels=labels).loss * trained, count + trained
    (total / count).backward()
    norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), OPTIM.clip_grad))
    groups = [
        {"params": [p for p in parameters.values() if p.dim() > 1], "weight_decay": OPTIM.weight_decay},
        {"params": [p for p in parameters.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=OPTIM.lr, betas=(0.9, 0.999), eps=OPTIM.adam_eps).step()
    return (total / count).item(), norm, {n: p.detach() for n, p in parameters.items()}


def check_one_step(dataset, family="qwen2", tied=False, corrupt=None):
    reference = tiny_model(family, tie_word_embeddings=tied)
    decoder = decoder_of(reference)
    if corrupt:
        corrupt(decoder)
    order = sample_order(len(dataset), 4, 1234, True).tolist()
    loss, norm, weights = transformers_step(reference, dataset, order)
    (step,), _ = run(decoder, dataset, steps=1)
    assert step.loss == pytest.approx(loss, rel=1e-5)
    assert step.grad_norm == pytest.approx(norm, rel=1e-5)
    ours = dict(decoder.named_parameters())
    for name, weight in weights.items():
        torch.testing.assert_close(ours[name].detach(), weight, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("family", "tied"), [("qwen2", False), ("qwen2", True), ("llama", False), ("qwen3", True)])
def test_one_full_step_equals_transformers(dataset, family, tied):
    check_one_step(dataset, family, tied)


def test_step_parity_fails_on_a_changed_weight(dataset):
    def corrupt(decoder):
        with torch.no_grad():
            decoder.model.layers[1].self_attn.k_proj.weight[3] *= 1.05

    with pytest.raises(AssertionError):
        check_one_step(dataset, corrupt=corrupt)


def lora_reference(family, settings):
    """peft's own model of the same base, B set off zero so that A has a gradient too."""
    reference = get_peft_model(
        tiny_model(family), LoraConfig(r=settings.r, lora_alpha=settings.alpha, target_modules=list(settings.targets))
    )
    fill(reference, 0.05)
    return reference


def check_one_lora_step(dataset, family="qwen2", scale=1.0):
    settings = LoraSettings(
        r=4, alpha=8 * scale, targets=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    )
    reference = lora_reference(family, LoraSettings(r=4, alpha=8, targets=settings.targets))
    weights = {n.removeprefix("base_model.model."): p.detach().clone() for n, p in reference.named_parameters()}
    plain = {n.replace(".base_layer", ""): w for n, w in weights.items() if "lora_" not in n}
    model = build_model(reference.get_base_model().config, lambda name: plain[name].clone(), torch.float32)
    add_lora(model, settings, seed=1)
    decoder = Decoder(model)
    ours = dict(decoder.named_parameters())
    with torch.no_grad():
        for name, p in ours.items():
            p.copy_(weights[name])
    order = sample_order(len(dataset), 4, 1234, True).tolist()
    loss, norm, updated = transformers_step(reference, dataset, order)
    (step,), optimizer = run(decoder, dataset, steps=1)
    assert step.loss == pytest.approx(loss, rel=1e-5) and step.grad_norm == pytest.approx(norm, rel=1e-5)
    assert {f"base_model.model.{name}" for name in optimizer.slots} == updated.keys()
    for name, p in ours.items():
        expected = updated.get(f"base_model.model.{name}", weights[name])
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert "lora_" in name or torch.equal(p, weights[name])  # the base is frozen


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_one_lora_step_equals_peft(dataset, family):
    check_one_lora_step(dataset, family)


def test_lora_parity_fails_on_another_scaling(dataset):
    with pytest.raises(AssertionError):
        check_one_lora_step(dataset, scale=1.5)


def test_curves_do_not_see_the_packing(dataset):
    layouts = ({}, {"micro_batch_tokens": 16}, {"micro_batch_size": 1})
    curves = [run(decoder_of(tiny_model()), dataset, batch=BatchConfig(global_batch_size=4, **x))[0] for x in layouts]
    for other in curves[1:]:
        assert [s.loss for s in other] == pytest.approx([s.loss for s in curves[0]], rel=1e-5)
        assert [s.grad_norm for s in other] == pytest.approx([s.grad_norm for s in curves[0]], rel=1e-5)
    assert curves[0][-1].loss < curves[0][0].loss


def test_rates_and_counts_of_the_steps(dataset):
    steps, _ = run(decoder_of(tiny_model()), dataset)
    assert [s.step for s in steps] == [1, 2, 3, 4, 5, 6] and [s.samples for s in steps] == [4, 8, 12, 16, 20, 24]
    assert [s.lr for s in steps] == pytest.approx([1e-3 * (1 - k / 6) for k in range(6)])
    assert [s.next_lr for s in steps[:-1]] == [s.lr for s in steps[1:]]
    assert sum(s.tokens for s in steps) == 2 * sum(LENGTHS)
    assert sum(s.trained_tokens for s in steps) == 2 * sum(n - 2 for n in LENGTHS)


def test_bf16_follows_fp32(dataset):
    exact, _ = run(decoder_of(tiny_model()), dataset)
    rough, _ = run(decoder_of(tiny_model(), torch.bfloat16), dataset, precision=PrecisionConfig(bf16=True))
    assert [s.loss for s in rough] == pytest.approx([s.loss for s in exact], rel=2e-2)


def test_a_loop_goes_on_from_its_progress(dataset):
    whole, _ = run(decoder_of(tiny_model()), dataset)
    decoder, progress = decoder_of(tiny_model()), Progress()
    optimizer = make_optimizer(decoder.named_parameters(), OPTIM)
    order = sample_order(len(dataset), 24, 1234, True)
    batches = global_batches(dataset, order, BatchConfig(global_batch_size=4), 64)
    scaler = LossScaler(PrecisionConfig(fp32=True))
    first = train(OneProcess(decoder), batches, optimizer, Schedule(OPTIM, 6, 4), scaler, progress)
    begun = [next(first), next(first)]
    rest, _ = run(decoder, dataset, progress=copy.copy(progress), optimizer=optimizer)
    assert [s.loss for s in begun + rest] == [s.loss for s in whole]


def test_not_finite_loss_names_step_samples_and_tensor(dataset):
    decoder = decoder_of(tiny_model())
    with torch.no_grad():
        decoder.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    before = {n: p.detach().clone() for n, p in decoder.named_parameters()}
    ids = sample_order(len(dataset), 4, 1234, True).tolist()
    named = ", ".join(map(str, make_global_batch(dataset, ids, BatchConfig(), 64).micro_batches[0].sample_ids))
    with pytest.raises(NotFinite, match=rf"step 1: the loss is nan, in samples {named}\..*layers\.2\.mlp\.up_proj"):
        run(decoder, dataset)
    assert all(torch.equal(p, before[n]) or "up_proj" in n for n, p in decoder.named_parameters())


def test_not_finite_gradient_stops_outside_fp16(dataset):
    decoder = decoder_of(tiny_model())
    decoder.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NotFinite, match="step 1: the gradient norm is"):
        run(decoder, dataset)


def test_fp16_overflow_skips_the_step_and_keeps_the_rate(dataset):
    decoder = decoder_of(tiny_model(), torch.float16)
    before = [p.detach().clone() for p in decoder.parameters()]
    precision = PrecisionConfig(fp16=True, initial_loss_scale=2.0**24, hysteresis=1)
    steps, _ = run(decoder, dataset, precision=precision, steps=12)
    skipped = [s.skipped for s in steps]
    first = skipped.index(False)
    assert 0 < first < 12 and all(s.grad_norm is None for s in steps[:first])
    assert [s.loss_scale for s in steps[:3]] == [2.0**24, 2.0**23, 2.0**22][: max(3, first)]
    assert all(s.lr == OPTIM.lr for s in steps[: first + 1]) and steps[first].next_lr < OPTIM.lr
    assert steps[-1].samples == 48
    assert not all(torch.equal(a, b) for a, b in zip(decoder.parameters(), before, strict=True))


def test_a_batch_without_trainable_token_updates_nothing(tmp_path):
    ids, labels = sample(1, 6)
    dataset = write(tmp_path / "masked", [(ids, labels * 0 - 100)] * 4)
    decoder = decoder_of(tiny_model())
    before = [p.detach().clone() for p in decoder.parameters()]
    progress = Progress()
    (step,), _ = run(decoder, dataset, steps=1, progress=progress)
    assert step.skipped and step.loss == 0.0 and progress.untrainable == 4
    assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), before, strict=True))


def test_evaluation_goes_without_dropout(dataset):
    decoder = decoder_of(tiny_model())
    decoder.train()
    batch = make_global_batch(dataset, list(range(12)), BatchConfig(), 64)
    loss = OneProcess(decoder).evaluate(batch)
    (step,), _ = run(decoder, dataset, steps=1, batch=BatchConfig(global_batch_size=4))
    assert decoder.training and loss == pytest.approx(step.loss, rel=0.2) and loss != step.loss
