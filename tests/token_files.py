"""Small token files on the spot, for the tests of everything that reads them."""

import numpy as np

from tuneval.data.batches import SftDataset
from tuneval.data.indexed import IndexedWriter
from tuneval.files import write_json

MANIFEST = {
    "prompt_type": "qwen",
    "template_fingerprint": "",
    "template": {},
    "stop_token_ids": [3],
    "tokenizer": {},
    "input": {},
    "skipped": {},
    "over_long": 0,
    "data_sha256": "",
    "packed": "no",
}
"""What preprocess says of a data set, nearly empty."""
PROMPT = 2
"""Untrained tokens at the start of a `sample`."""


def write(prefix, samples, manifest=None, masks=None):
    """Token files of (input_ids, labels) pairs."""
    masks = masks or [np.ones(len(ids), np.int32) for ids, _ in samples]
    columns = {"input_ids": [s[0] for s in samples], "labels": [s[1] for s in samples], "attention_mask": masks}
    for name, rows in columns.items():
        with IndexedWriter(f"{prefix}_packed_{name}_document") as writer:
            for row in rows:
                writer.add(np.asarray(row, np.int32))
    if manifest:
        write_json(f"{prefix}_manifest.json", {**MANIFEST, "samples": len(samples), **manifest})
    return SftDataset(prefix)


def sample(number, length, prompt=PROMPT):
    ids = (np.arange(length) * 7 + number * 13) % 150 + 4
    return ids, np.where(np.arange(length) < prompt, -100, ids)
