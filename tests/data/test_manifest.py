"""A manifest is as preprocess writes it, or told to be otherwise."""

from __future__ import annotations

import json

import pytest
from token_files import MANIFEST, sample, write

from tuneval.data.batches import SftDataset
from tuneval.data.manifest import read_manifest
from tuneval.errors import UserError


def test_none_is_none(tmp_path):
    assert read_manifest(tmp_path / "data") is None


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"[]", "must hold a JSON object, found a list"),
        (b"null", "must hold a JSON object, found null"),
        (json.dumps({**MANIFEST, "samples": 1, "template": []}).encode(), r"not as preprocess writes it \(template:"),
        (json.dumps({"samples": 1}).encode(), "not as preprocess writes it"),
    ],
)
def test_odd_manifests_are_told(tmp_path, content, words):
    (tmp_path / "data_manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_manifest(tmp_path / "data")


def test_a_manifest_of_other_files_is_told(tmp_path):
    write(tmp_path / "data", [sample(i, 9) for i in range(3)], MANIFEST)
    (tmp_path / "data_manifest.json").write_text(json.dumps({**MANIFEST, "samples": 4}))
    with pytest.raises(UserError, match="tells of 4 samples, the files hold 3"):
        SftDataset(tmp_path / "data")
