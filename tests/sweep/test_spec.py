"""A sweep file becomes points: grid, list, random part; names that stay; every mistake told with a way out."""

from __future__ import annotations

import pytest
from sweep_runs import SWEEP, read, sweep_file

from tuneval.errors import UserError
from tuneval.sweep.points import spell_value
from tuneval.sweep.spec import read_sweep


def labels(sweep) -> list[str]:
    return [p.label for p in sweep.points]


def test_a_grid_and_a_listed_point(tmp_path):
    sweep = read(tmp_path)
    assert labels(sweep) == [f"lora_r={r}, lr={lr}" for r in (4, 16) for lr in ("1e-4", "1e-3", "3e-3")] + ["full"]
    assert sweep.points[1].flags == {"lora_r": 4, "lr": 1e-3}, "YAML takes 1e-3 for a text"
    assert sweep.points[1].id == "lora_r-4.lr-1e-3" and not sweep.points[1].listed
    assert sweep.points[6].flags == {"lora_r": None, "lr": 1e-5} and sweep.points[6].listed
    assert sweep.objective == "score"
    assert read(tmp_path, evaluate=None).objective == "validation_loss"


def test_the_output_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(tmp_path, output="~/runs/a").output == tmp_path / "runs/a"


def test_a_list_alone(tmp_path):
    sweep = read(tmp_path, axes=None, points=[{"lr": 1e-4, "seed": 3}, {"name": "b", "lr": 2e-4}])
    assert labels(sweep) == ["lr=1e-4, seed=3", "b"]


def test_a_listed_point_on_the_grid_names_its_levels(tmp_path):
    sweep = read(tmp_path, axes={"lora_r": [4, 8], "kind": {"warm": {"lr_warmup_iters": 5}, "cold": {}}},
                 points=[{"lora_r": 16, "kind": "warm"}])  # fmt: skip
    assert sweep.points[-1].flags == {"lora_r": 16, "lr_warmup_iters": 5}
    assert sweep.points[-1].levels == {"lora_r": "16", "kind": "warm"}


def test_an_axis_of_named_groups(tmp_path):
    groups = {"full": {"lr": 1e-5}, "lora": {"lora-r": 8, "lr": "1e-4"}}
    sweep = read(tmp_path, axes={"method": groups}, points=None)
    assert [(p.label, p.flags) for p in sweep.points] == [
        ("method=full", {"lr": 1e-5}),
        ("method=lora", {"lora_r": 8, "lr": 1e-4}),
    ]


def test_seeds(tmp_path):
    sweep = read(tmp_path, axes={"lr": [1e-4, 2e-4]}, points=None, seeds=2)
    assert [p.id for p in sweep.points] == [f"lr-{lr}.seed-{s}" for lr in ("1e-4", "2e-4") for s in (1234, 1235)]
    assert [p.flags["seed"] for p in sweep.points] == [1234, 1235] * 2
    one = read(tmp_path, axes={"lr": [1e-4]}, points=None, seeds=[7])
    assert one.points[0].flags["seed"] == 7 and one.points[0].seed is None, "one seed is no repetition"


def test_a_random_part_of_the_grid_is_the_same_every_time(tmp_path):
    drawn = [labels(read(tmp_path, points=None, sample={"count": 4, "seed": 5})) for _ in range(2)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 4
    assert drawn[0] != labels(read(tmp_path, points=None, sample={"count": 4, "seed": 6}))
    assert len(read(tmp_path, points=None, sample=100).points) == 6, "the whole grid at most"


def test_values_drawn_from_a_range(tmp_path):
    axes = {"lr": {"min": "1e-5", "max": "1e-3", "log": True}, "lora_r": {"min": 2, "max": 64, "whole": True}}
    sweep = read(tmp_path, axes=axes, points=None, sample=12)
    rates = [p.flags["lr"] for p in sweep.points]
    assert all(1e-5 <= v <= 1e-3 for v in rates) and sum(v < 1e-4 for v in rates) >= 3, "evenly in the exponent"
    assert all(isinstance(p.flags["lora_r"], int) for p in sweep.points)
    assert [level.number for level in sweep.axes["lr"]] == sorted(set(rates))
    with pytest.raises(UserError, match="say with `sample: N`"):
        read(tmp_path, axes=axes, points=None)


def test_names_stay_when_the_file_grows(tmp_path):
    before = {p.id for p in read(tmp_path).points}
    after = {p.id for p in read(tmp_path, axes={"lora_r": [4, 8, 16], "lr": [1e-4, 1e-3, 3e-3]}).points}
    assert before < after


def test_names_are_safe_folders(tmp_path):
    sweep = read(
        tmp_path, axes=None, points=[{"name": "../秩 8/x"}, {"name": "a" * 200, "lr": 1}, {"load": "models/a b"}]
    )
    for point in sweep.points:
        assert point.id.isascii() and "/" not in point.id and not point.id.startswith(".") and len(point.id) <= 80


@pytest.mark.parametrize(
    "value, words",
    [(1e-4, "1e-4"), (2.5e-5, "2.5e-5"), (0.1, "0.1"), (0.0, "0"), (16, "16"), (None, "none"), (True, "yes"),
     ("models/qwen-0.5b/", "qwen-0.5b"), (["q_proj", "v_proj"], "q_proj+v_proj"), ({"lacks": "x"}, "lacks=x")],
)  # fmt: skip
def test_spelling_of_values(value, words):
    assert spell_value(value) == words


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"axis": {}}, "axis: unknown key; did you mean axes?"),
        ({"axes": [1]}, "axes: must hold `flag: \\[values\\]` lines, found list"),
        ({"axes": {"lr": []}}, "axes.lr: is empty"),
        ({"axes": {"lr": [1e-4, "1e-4"]}}, "axes.lr: holds the same value twice"),
        ({"axes": {"lr": 3}}, "axes.lr: give a list of values"),
        ({"axes": None, "points": None}, "no point in it"),
        ({"points": {"lr": 1}}, "points: must be a list"),
        ({"points": [{"name": "full"}, {"name": "full", "lr": 1}]}, "two points are called full"),
        ({"points": [{"lora_r": 4, "lr": 1e-4}]}, "two points are called lora_r=4, lr=1e-4"),
        ({"points": [{"name": "again", "lora_r": 4, "lr": 1e-4}]}, "again are the same run"),
        ({"seeds": "three"}, "seeds three: give how many"),
        ({"seeds": [1, 1]}, "a list of different whole numbers"),
        ({"seeds": [True, 2]}, "a list of different whole numbers"),
        ({"seeds": 2, "base": {"seed": "x"}}, "base: seed x: must be a whole number"),
        ({"sample": 0}, "sample 0: give the number of points"),
        ({"sample": True}, "sample True: give the number of points"),
        ({"sample": 2, "axes": {"lr": {"min": "a", "max": 1}}}, "axes.lr: min a: must be a number"),
        ({"sample": 2, "axes": {"lr": {"min": 0.1, "max": None}}}, "axes.lr: max None: must be a number"),
        ({"sample": 2, "axes": {"lr": {"min": 1, "max": 0.1}}}, "axes.lr: min 1, max 0.1: min must be below max"),
        ({"sample": 2, "axes": {"lr": {"min": 0, "max": 1, "log": True}}}, "axes.lr: min 0 with log: must be above 0"),
        ({"sample": 2, "axes": {"lr": {"min": 0, "max": 1, "log": "no"}}}, "axes.lr: log no: must be true or false"),
        ({"objective": "loss"}, "objective loss: must be score or validation_loss"),
        ({"evaluate": None, "objective": "score"}, "objective score: give an `evaluate` section"),
        ({"base": ["load"]}, "base: must hold `flag: value` lines, found list"),
    ],
)
def test_mistakes_are_told(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        read(tmp_path, **changes)


def test_several_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(UserError, match="3 problems"):
        read(tmp_path, bas={}, axes={"lr": []}, seeds="x")


@pytest.mark.parametrize(
    "text, said", [("a: [", "not valid YAML"), ("- a", "must hold keys"), ("\xff", "not valid YAML")]
)
def test_files_that_are_none(tmp_path, text, said):
    path = tmp_path / "s.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=said):
        read_sweep(path)
    with pytest.raises(UserError, match="no such file"):
        read_sweep(tmp_path / "nowhere.yaml")


def test_the_file_of_these_tests_is_sound(tmp_path):
    assert read_sweep(sweep_file(tmp_path)).source["name"] == SWEEP["name"]
