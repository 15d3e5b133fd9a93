"""Global batches: packing that the loss can't see, Megatron's order and borders, MindSpeed's truncation."""

import itertools

import numpy as np
import pytest
import torch
from conftest import tiny_model
from token_files import sample, write

from tuneval.config.schema import BatchConfig
from tuneval.data.batches import (
    SftDataset,
    Share,
    deal,
    global_batches,
    make_global_batch,
    pack,
    sample_order,
    truncate,
)
from tuneval.data.indexed import IndexedWriter
from tuneval.data.split import split_borders
from tuneval.data.truncation import truncate_turns
from tuneval.errors import UserError

LENGTHS = (5, 9, 3, 7, 12, 4, 6, 8)


@pytest.fixture
def dataset(tmp_path):
    return write(tmp_path / "data", [sample(i, n) for i, n in enumerate(LENGTHS)])


def step_loss(model, batch, cross_samples=False):
    """Loss and gradient of a global batch by transformers' own forward, segment by segment.

    `cross_samples` gives the segments up: one row, positions 0 ... T-1.
    """
    model.zero_grad()
    total = 0.0
    for micro in batch.micro_batches:
        bounds = (0, micro.segments[-1]) if cross_samples else micro.segments
        for a, b in itertools.pairwise(bounds):
            logits = model(micro.input_ids[:, a:b]).logits[0]
            losses = torch.nn.functional.cross_entropy(logits, micro.targets[0, a:b], reduction="none")
            loss = (losses * micro.weights[0, a:b]).sum()
            loss.backward()
            total += loss.item()
    return total, torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def straight_loss(model, dataset, sample_ids, reduction):
    """The step's definition, one sample after another by transformers' `labels`."""
    model.zero_grad()
    means, counts = [], []
    for i in sample_ids:
        ids, labels = (torch.from_numpy(np.array(x, np.int64))[None] for x in (dataset[i].input_ids, dataset[i].labels))
        means.append(model(ids, labels=labels).loss)
        counts.append(int((labels[0, 1:] != -100).sum()))
    if reduction == "token":
        loss = sum(m * c for m, c in zip(means, counts, strict=True)) / sum(counts)
    else:
        loss = sum(means) / len(means)
    loss.backward()
    return loss.item(), torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def check_packing(dataset, reduction, cross_samples=False):
    model, ids = tiny_model(), list(range(8))
    loss, gradient = straight_loss(model, dataset, ids, reduction)
    layouts = ({"micro_batch_tokens": 1}, {"micro_batch_tokens": 20}, {"micro_batch_size": 2}, {})
    for layout in layouts:
        batch = make_global_batch(dataset, ids, BatchConfig(loss_reduction=reduction, **layout), 64)
        packed_loss, packed_gradient = step_loss(model, batch, cross_samples)
        torch.testing.assert_close(packed_loss, loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(packed_gradient, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_packed_unpacked_and_accumulated_are_one(dataset, reduction):
    check_packing(dataset, reduction)


def test_packing_parity_fails_without_segments(dataset):
    with pytest.raises(AssertionError):
        check_packing(dataset, "token", cross_samples=True)


def test_layout_of_a_micro_batch(dataset):
    batch = make_global_batch(dataset, [2, 0], BatchConfig(), 64)
    (micro,) = batch.micro_batches
    assert micro.segments == (0, 3, 8) and micro.sample_ids == (2, 0)
    assert micro.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
    ids = np.concatenate([dataset[2].input_ids, dataset[0].input_ids])
    assert micro.input_ids.tolist() == [ids.tolist()]
    assert micro.targets.tolist() == [[-100, ids[2], -100, -100, *ids[5:8], -100]]
    assert micro.weights.tolist() == [pytest.approx([0, 0.25, 0, 0, 0.25, 0.25, 0.25, 0])]
    assert (batch.tokens, batch.trained_tokens, batch.lengths) == (8, 4, (3, 5))


def test_sample_reduction_weighs_samples_alike(dataset):
    batch = make_global_batch(dataset, [2, 0], BatchConfig(loss_reduction="sample"), 64)
    assert batch.micro_batches[0].weights.tolist() == [pytest.approx([0, 0.5, 0, 0, *[1 / 6] * 3, 0])]


def padded_means(model, dataset, sample_ids, size):
    """What Megatron's trainer computes: transformers' own loss of each right-padded micro-batch, then their mean."""
    model.zero_grad()
    losses = []
    for first in range(0, len(sample_ids), size):
        group = [dataset[i] for i in sample_ids[first : first + size]]
        longest = max(len(s.input_ids) for s in group)
        ids, labels = torch.zeros(len(group), longest, dtype=torch.int64), torch.full((len(group), longest), -100)
        for row, one in enumerate(group):
            ids[row, : len(one.input_ids)] = torch.from_numpy(one.input_ids.astype(np.int64))
            labels[row, : len(one.labels)] = torch.from_numpy(one.labels.astype(np.int64))
        losses.append(model(ids, labels=labels).loss)
    loss = sum(losses) / len(losses)
    loss.backward()
    return loss.item(), torch.cat([p.grad.reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batch_reduction_is_megatrons_mean_of_means(dataset, size):
    model, ids = tiny_model(), [3, 0, 6, 1, 7, 2, 5, 4]
    loss, gradient = padded_means(model, dataset, ids, size)
    for tokens in (1, 20, 2048):
        settings = BatchConfig(loss_reduction="micro-batch", micro_batch_size=size, micro_batch_tokens=tokens)
        packed_loss, packed_gradient = step_loss(model, make_global_batch(dataset, ids, settings, 64))
        torch.testing.assert_close(packed_loss, loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(packed_gradient, gradient, rtol=1e-5, atol=1e-6)
    other, _ = padded_means(model, dataset, ids, 8 // size)  # the size matters, or this test shows nothing
    assert abs(other - loss) > 1e-3


def test_micro_batches_of_one_are_samples(dataset):
    by_sample, by_one = (
        make_global_batch(dataset, [4, 2, 7], BatchConfig(loss_reduction=kind, micro_batch_size=size), 64)
        for kind, size in (("sample", None), ("micro-batch", 1))
    )
    assert torch.equal(by_sample.micro_batches[0].weights, by_one.micro_batches[0].weights)


def test_a_sample_without_trainable_token_is_counted_and_left_out(tmp_path):
    masked = (sample(1, 6)[0], np.full(6, -100))
    only_first = (sample(2, 4)[0], np.array([9, -100, -100, -100]))  # nothing comes before it, so nothing predicts it
    dataset = write(tmp_path / "data", [sample(0, 5), masked, only_first])
    for reduction in ("token", "sample"):
        batch = make_global_batch(dataset, [0, 1, 2], BatchConfig(loss_reduction=reduction), 64)
        alone = make_global_batch(dataset, [0], BatchConfig(loss_reduction=reduction), 64)
        assert batch.untrainable == (1, 2) and batch.sample_ids == (0, 1, 2)
        assert torch.equal(batch.micro_batches[0].weights, alone.micro_batches[0].weights)
    assert make_global_batch(dataset, [1], BatchConfig(), 64).micro_batches == ()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_data_parallel_shares_hold_every_sample_once_and_equal_tokens(dataset, ranks):
    ids = list(range(len(LENGTHS)))
    shares = [make_global_batch(dataset, ids, BatchConfig(), 64, Share(rank, ranks)) for rank in range(ranks)]
    held = [[i for m in share.micro_batches for i in m.sample_ids] for share in shares]
    assert sorted(itertools.chain(*held)) == ids
    tokens = [sum(LENGTHS[i] for i in samples) for samples in held]
    assert max(tokens) - min(tokens) <= min(LENGTHS)
    weight = sum(float(m.weights.sum()) for share in shares for m in share.micro_batches)
    assert weight == pytest.approx(1.0)  # of the whole step, not of each process


def test_batches_go_on_where_they_stopped(dataset):
    order = sample_order(8, 24, 1234, True)
    config = BatchConfig(global_batch_size=4)
    whole = list(global_batches(dataset, order, config, 64))
    rest = list(global_batches(dataset, order, config, 64, start=8))
    assert [b.sample_ids for b in rest] == [b.sample_ids for b in whole[2:]] and len(whole) == 6


# --- packing ---


def test_pack_keeps_the_limits_and_loses_nothing():
    generator = np.random.RandomState(0)
    for most in (None, 3):
        lengths = generator.randint(1, 700, size=200).tolist()
        bins = pack(lengths, 512, most)
        assert sorted(itertools.chain(*bins)) == list(range(200))
        assert all(sum(lengths[i] for i in b) <= 512 or len(b) == 1 for b in bins)
        assert most is None or max(map(len, bins)) <= most
        assert bins == pack(lengths, 512, most)


def test_pack_is_tight():
    assert pack([2, 3, 4, 5], 7, None) == [[0, 3], [1, 2]]
    lengths = np.random.RandomState(1).randint(20, 300, size=300).tolist()
    assert len(pack(lengths, 2048, None)) == -(-sum(lengths) // 2048)  # no packing can do with fewer


# --- order and borders ---


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_item_is_dealt_once_and_loads_are_even(ranks):
    sizes = [(i * 37) % 53 + 1 for i in range(52)]
    dealt = deal(sizes, ranks)
    assert sorted(i for items in dealt for i in items) == list(range(52))
    loads = [sum(sizes[i] for i in items) for items in dealt]
    assert max(loads) - min(loads) <= 3  # dealt in turn: up to 112


def test_more_processes_than_items():
    assert deal([5, 1], 4) == [[0], [1], [], []]


def test_borders_golden():
    assert split_borders(1000, "969,30,1") == (0, 969, 999, 1000)
    assert split_borders(7, "100,0,0") == (0, 7, 7, 7)
    assert split_borders(7, "1") == (0, 7, 7, 7)
    assert split_borders(3, "1,1") == (0, 1, 3, 3)  # both round up; the surplus is taken from every border


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "0,0", "-1,2", "nan"])
def test_bad_splits_are_refused(split):
    with pytest.raises(UserError, match="--split"):
        split_borders(10, split)


def test_order_is_one_generator_over_the_epochs():
    generator = np.random.RandomState(1234)
    first, second = np.arange(5), np.arange(5)
    generator.shuffle(first)
    generator.shuffle(second)
    assert sample_order(5, 8, 1234, True).tolist() == [*first, *second[:3]]
    assert sample_order(5, 8, 1234, False).tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert sample_order(5, 0, 1, True).tolist() == []


def test_padded_epochs_are_whole_batches():
    assert sample_order(5, 16, 1, False, multiple_of=4).tolist() == [0, 1, 2, 3, 4, 0, 1, 2] * 2
    generator, epoch = np.random.RandomState(7), np.array([0, 1, 2, 3, 4, 0, 1, 2])
    generator.shuffle(epoch)
    assert sample_order(5, 8, 7, True, multiple_of=4).tolist() == epoch.tolist()


# --- truncation ---


def test_truncation_golden():
    assert truncate_turns([(80, 30)], 100) == [(70, 30)]
    assert truncate_turns([(30, 80)], 100) == [(30, 70)]
    assert truncate_turns([(100, 100)], 100) == [(50, 50)]
    assert truncate_turns([(10, 10), (60, 60), (5, 5)], 100) == [(10, 10), (40, 40)]


def test_long_samples_are_cut_turn_by_turn(tmp_path):
    labels = np.full(20, -100)
    labels[4:8] = labels[12:18] = 1
    dataset = write(tmp_path / "data", [(np.arange(20), labels), (np.arange(6), np.arange(6))])
    cut = truncate(dataset[0], 13)
    # first turn 4 + 4 fits a room of 13; the second has 5: 4 and 6 shrink to 5 - int(5 * 6 / 10) and int(5 * 6 / 10)
    assert cut.input_ids.tolist() == [*range(8), 8, 9, 12, 13, 14] and cut.bounds == (0, 13)
    assert truncate(dataset[0], 20).input_ids.tolist() == list(range(20))
    assert truncate(dataset[1], 4).input_ids.tolist() == [0, 1, 2, 3]  # a target without a source


def test_neat_packed_bins_come_apart_again(tmp_path):
    manifest = {"packed": "neat-pack"}
    one, two = sample(0, 5), sample(1, 7)
    padding = np.ones(4, int)
    ids = np.concatenate([one[0], two[0], padding])
    labels = np.concatenate([one[1], two[1], padding * -100])
    mask = np.array([1] * 5 + [2] * 7 + [0] * 4)
    packed = write(tmp_path / "packed", [(ids, labels)], manifest, [mask])
    loose = write(tmp_path / "loose", [one, two], {"packed": "no"})
    a = make_global_batch(packed, [0], BatchConfig(), 64)
    b = make_global_batch(loose, [0, 1], BatchConfig(), 64)
    assert packed[0].bounds == (0, 5, 12) and a.tokens == 12
    for name in ("input_ids", "targets", "weights", "position_ids"):
        assert torch.equal(getattr(a.micro_batches[0], name), getattr(b.micro_batches[0], name))
    assert a.micro_batches[0].segments == b.micro_batches[0].segments


def test_counts_and_range_of_the_whole_file(tmp_path):
    samples = [sample(0, 5), (sample(1, 6)[0], np.full(6, -100)), (np.array([9, 159, 4]), np.array([9, 159, 4]))]
    dataset = write(tmp_path / "data", samples)
    assert dataset.trained_counts().tolist() == [3, 0, 2]  # nothing predicts the third's first token
    assert dataset.token_range() == (4, 159)


def test_files_that_do_not_belong_together(tmp_path):
    write(tmp_path / "data", [sample(0, 5)])
    with IndexedWriter(f"{tmp_path / 'data'}_packed_labels_document") as writer:
        writer.add(np.arange(4, dtype=np.int32))
    with pytest.raises(UserError, match="preprocess again"):
        SftDataset(tmp_path / "data")
