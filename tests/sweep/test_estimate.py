"""What a dry run announces: the steps and tokens that `tune` will make."""

from __future__ import annotations

import pytest

from tuneval.config import flags, schema
from tuneval.files import write_json
from tuneval.sweep.estimate import planned


@pytest.mark.parametrize(
    "words, steps",
    [
        ("--train-epochs 0.7 --global-batch-size 1", 7),  # 98 % of 10 samples are 10: borders are rounded
        ("--train-epochs 3 --global-batch-size 4 --split 70,20,10", 5),
        ("--train-iters 9 --global-batch-size 4", 9),
    ],
)
def test_steps_are_those_of_tune(tmp_path, words, steps):
    write_json(tmp_path / "d_manifest.json", {"samples": 10, "tokens": 200})
    words = f"--load m --data-path {tmp_path}/d --save r {words}".split()
    config = flags.parse(schema.TuneConfig, words, "tuneval tune").config
    assert planned(config) == (steps, steps * config.batch.global_batch_size * 20)


def test_nothing_is_said_of_data_that_is_not_there_yet():
    config = flags.parse(schema.TuneConfig, "--load m --data-path d --save r".split(), "tuneval tune").config
    assert planned(config) == (None, None)
