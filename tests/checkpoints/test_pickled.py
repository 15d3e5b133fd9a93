"""Reading .pt files: tensors as torch reads them, foreign classes inert, nothing can run."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import sys
import types
import zipfile

import pytest
import torch

from tuneval.checkpoints.pickled import StandIn, StoredTensor, safe_load
from tuneval.errors import UserError


class RunsCode:
    """Pickles as a call; unpickling it anywhere else would run the call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def tensors():
    base = torch.arange(24, dtype=torch.float32).view(4, 6)
    return {
        "fp32": base,
        "bf16": base.bfloat16(),
        "fp16": base.half(),
        "int64": base.long(),
        "bool": base > 3,
        "view": base[1:3],
        "transposed": base.t(),
        "column": base[:, 2:4],
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(base + 1),
    }


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_are_torchs(tmp_path, protocol):
    expected = tensors()
    torch.save(expected, tmp_path / "t.pt", pickle_protocol=protocol)
    loaded = safe_load(tmp_path / "t.pt")
    for name, tensor in expected.items():
        stored = loaded[name]
        assert isinstance(stored, StoredTensor)
        assert (stored.dtype, stored.shape) == (tensor.dtype, tuple(tensor.shape)), name
        assert torch.equal(stored.read(), tensor), name
    for name in ("bf16", "view", "transposed"):
        for dim in (0, 1):
            assert torch.equal(loaded[name].read_slice(dim, 1, 2), expected[name].narrow(dim, 1, 1)), (name, dim)


def test_what_trainers_write_beside_tensors(tmp_path):
    """defaultdict, sets, dtypes, an enum of a package that is not here, numpy states, blobs."""
    foreign = types.ModuleType("megatron_core_enums")
    foreign.ModelType = type("ModelType", (), {"__module__": "megatron_core_enums", "__qualname__": "ModelType"})
    sys.modules["megatron_core_enums"] = foreign
    try:
        import io
        import signal

        import numpy as np

        model_type = foreign.ModelType()
        model_type.value = 1
        args = argparse.Namespace(
            params_dtype=torch.bfloat16, model_type=model_type, names={"a", "b"}, stop=signal.SIGTERM, lr=1e-5
        )
        state = collections.defaultdict(list, {"w": torch.ones(2), "_extra_state": None, "blob": io.BytesIO(b"fp8")})
        saved = {"args": args, "model": state, "rng_state": [{"np": np.random.RandomState(0).get_state()}]}
        torch.save(saved, tmp_path / "t.pt", pickle_protocol=4)
    finally:
        del sys.modules["megatron_core_enums"]
    loaded = safe_load(tmp_path / "t.pt")
    found = loaded["args"]
    assert isinstance(found, argparse.Namespace)
    assert (found.params_dtype, found.names, found.lr) == (torch.bfloat16, {"a", "b"}, 1e-5)
    assert isinstance(found.model_type, StandIn) and "ModelType" in repr(found.model_type)
    assert list(loaded["model"]) == ["w", "_extra_state", "blob"]
    with pytest.raises(KeyError):
        loaded["model"]["absent"]  # a defaultdict would have run its factory


def test_tensors_that_an_ascend_trainer_saved(tmp_path, monkeypatch):
    """Older torch_npu pickles a tensor as a call of its own, with torch's arguments and a format behind them."""
    names = ("torch_npu", "torch_npu.utils", "torch_npu.utils.storage")
    modules = {name: types.ModuleType(name) for name in names}
    exec("def _rebuild_npu_tensor(*arguments): raise AssertionError", vars(modules[names[2]]))
    with monkeypatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        weight = torch.arange(6, dtype=torch.bfloat16).view(2, 3)
        arguments = (weight._typed_storage(), 0, (2, 3), (3, 1), False, collections.OrderedDict(), 2)
        saved = {"w": RunsCode(modules[names[2]]._rebuild_npu_tensor, *arguments)}
        torch.save(saved, tmp_path / "t.pt")
    assert torch.equal(safe_load(tmp_path / "t.pt")["w"].read(), weight)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", ["system", "eval", "exec", "popen", "import"])
def test_a_file_that_runs_code_is_refused_and_nothing_ran(tmp_path, name, protocol):
    marker = tmp_path / "ran"
    python = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    attack = {
        "system": RunsCode(os.system, f"touch {marker}"),
        "eval": RunsCode(eval, python),
        "exec": RunsCode(exec, python),
        "popen": RunsCode(__import__("subprocess").Popen, ["touch", str(marker)]),
        "import": RunsCode(__import__, "antigravity"),
    }[name]
    torch.save({"model": {"w": torch.ones(2)}, "args": attack}, tmp_path / "evil.pt", pickle_protocol=protocol)
    with pytest.raises(UserError, match=r"refused.*Nothing was run"):
        safe_load(tmp_path / "evil.pt")
    assert not marker.exists()
    if name == "system":  # the attack is real: an ordinary unpickler runs it
        torch.load(tmp_path / "evil.pt", weights_only=False)
        assert marker.exists()


def test_a_foreign_function_is_not_called(tmp_path):
    """A function of an installed package becomes a stand-in too."""
    marker = tmp_path / "made.txt"
    attack = RunsCode(torch.save, "content", str(marker))
    torch.save({"args": attack}, tmp_path / "evil.pt")
    assert isinstance(safe_load(tmp_path / "evil.pt")["args"], StandIn)
    assert not marker.exists()


def test_a_pickle_cannot_change_what_it_is_given(tmp_path):
    """BUILD with a slot state sets attributes of any object: it must only reach objects made for this load."""
    code = b"cargparse\nNamespace\n(N}X\x08\x00\x00\x00poisonedX\x01\x00\x00\x001stb."
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/data.pkl", code)
    safe_load(tmp_path / "evil.pt")
    assert not hasattr(argparse.Namespace, "poisoned")


def test_damaged_files_say_so(tmp_path):
    path = tmp_path / "t.pt"
    torch.save(tensors(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="cut off"):
        safe_load(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"not a file of torch\.save"):
        safe_load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("t/data.pkl", pickle.dumps([1])[:-1])
    with pytest.raises(UserError, match="damaged"):
        safe_load(path)
    with pytest.raises(UserError, match="no such file"):
        safe_load(tmp_path / "absent.pt")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    path = tmp_path / "t.pt"
    torch.save({"w": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"\0" * 4 if name.endswith("data/0") else content)
    with pytest.raises(UserError, match="too short"):
        safe_load(path)
