"""A plan's commands: shared work once, flags where they belong, mistakes told before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sweep_runs import read

from tuneval.errors import UserError
from tuneval.files import write_jsonl
from tuneval.sweep.checks import check_commands, check_sweep
from tuneval.sweep.spec import read_sweep
from tuneval.sweep.steps import make_plan

PREPROCESS = {"input": "alpaca.json", "seq_length": 512}


def plan_of(tmp_path, **changes):
    sweep = read(tmp_path, **changes)
    check_sweep(sweep)
    plan = make_plan(sweep, tmp_path / "out")
    check_commands(plan)
    return plan


def line(step) -> str:
    return " ".join(step.words)


def test_an_ordinary_run_a_point(tmp_path):
    plan = plan_of(tmp_path)
    job = plan.jobs[1]
    assert line(job.steps[0]) == (
        "tune --load models/qwen --data-path data/zh --train-iters 40 --global-batch-size 16 "
        f"--lora-r 4 --lr 0.001 --save {tmp_path}/out/points/lora_r-4.lr-1e-3"
    )
    assert line(job.steps[1]).endswith(f"--output {job.run}/evaluation/ceval-official")
    full = plan.jobs[-1].steps[0]
    assert "--lora-r" not in full.words and "1e-05" in full.words


def test_the_baseline_is_scored_once_a_model(tmp_path):
    plan = plan_of(tmp_path)
    assert [s.kind for s in plan.shared] == ["evaluate"] and len({j.baseline for j in plan.jobs}) == 1
    two = plan_of(tmp_path, axes={"load": ["models/a", "models/b"], "lr": [1e-4, 1e-3]}, points=None)
    assert [s.kind for s in two.shared] == ["evaluate"] * 2 and len({j.baseline for j in two.jobs}) == 2


def test_data_is_made_once(tmp_path):
    base = {"load": "models/qwen", "train_iters": 4}
    plan = plan_of(tmp_path, base=base, preprocess=PREPROCESS)
    kinds = [s.kind for s in plan.shared]
    assert kinds == ["preprocess", "evaluate"]
    prefix = str(plan.shared[0].output).removesuffix("_manifest.json")
    assert all(
        f"--data-path {prefix}" in line(j.steps[0]) and j.steps[0].needs == (plan.shared[0].id,) for j in plan.jobs
    )
    assert "--tokenizer-name-or-path models/qwen" in line(plan.shared[0])


def test_flags_of_the_data_go_to_preprocess(tmp_path):
    axes = {"prompt_type": ["qwen", "alpaca"], "data_size": [100, "all"], "seq_length": [64, 128]}
    plan = plan_of(tmp_path, base={"load": "m", "train_iters": 4}, preprocess=PREPROCESS, axes=axes, points=None)
    assert [s.kind for s in plan.shared if s.kind != "evaluate"] == ["records", "preprocess", "preprocess"] * 1 + [
        "preprocess"
    ] * 2
    assert all("--prompt-type" not in j.steps[0].words for j in plan.jobs), "tune takes it from the data"
    assert {j.steps[0].words[j.steps[0].words.index("--seq-length") + 1] for j in plan.jobs} == {"64", "128"}
    small = next(s for s in plan.shared if s.kind == "preprocess" and s.needs)
    assert "records-" in line(small) and small.needs[0].startswith("shared/records-")


def test_conversion_is_done_once_and_tuned_from(tmp_path):
    plan = plan_of(tmp_path, convert={"target_tensor_parallel_size": 2})
    assert line(plan.shared[0]).startswith(
        "convert --to mcore --target-tensor-parallel-size 2 --load models/qwen --save"
    )
    place = plan.shared[0].output
    assert all(f"--load {place}" in line(j.steps[0]) for j in plan.jobs)
    assert "--load models/qwen " in line(plan.shared[1]), "the model before tuning is the original"


def test_answers_of_the_base_are_shared(tmp_path):
    plan = plan_of(tmp_path, answers={"prompts": ["你好", "Hi"], "greedy": True, "max_new_tokens": 8})
    assert [s.kind for s in plan.shared] == ["evaluate", "prompts", "generate"]
    plan.shared[1].action()
    assert plan.shared[1].output.read_text(encoding="utf-8").count("\n") == 2
    last = plan.jobs[0].steps[-1]
    assert "--greedy --max-new-tokens 8" in line(last) and f"--before {plan.shared[2].output}" in line(last)
    assert last.needs == (plan.shared[2].id,)


def test_a_value_may_look_like_a_flag(tmp_path):
    plan = plan_of(tmp_path, answers={"prompts": ["Hi"], "system": "-brief-"})  # its parser would take `-` for a flag
    assert "--system=-brief-" in plan.shared[-1].words


def test_equal_plans_have_equal_places(tmp_path):
    places = [[s.output for s in plan_of(tmp_path, preprocess=PREPROCESS, base={"load": "m"}).shared] for _ in range(2)]
    assert places[0] == places[1]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"axes": {"lr_decay_stile": ["cosine"]}}, "axes.lr_decay_stile: lr_decay_stile: unknown flag; did you mean lr_decay_style?"),
        ({"base": {"load": "m", "data_path": "d", "save": "x"}}, "save: is chosen by the sweep"),
        ({"base": {"data_path": "d"}}, "base: load: give the model"),
        ({"base": {"load": "m"}}, "base: data_path: give it, or a `preprocess` section"),
        ({"preprocess": {"seq_length": 9}}, "preprocess: input: give the records"),
        ({"preprocess": {"input": "a", "output_prefix": "b"}}, "preprocess: output_prefix: is chosen by the sweep"),
        ({"axes": {"data_size": [10]}}, "data_size: works on records; give a `preprocess` section"),
        ({"evaluate": {"shots": 0}}, "evaluate: task_data_path: give the exam"),
        ({"evaluate": {"task_data_path": "e", "style": "official,lm_eval"}}, "evaluate: style official,lm_eval: .* give one style"),
        ({"evaluate": {"task_data_path": "e", "style": "all"}}, "evaluate: style all: a sweep is judged by one score"),
        ({"evaluate": {"task_data_path": "e", "compare": "x"}}, "evaluate: compare: is chosen by the sweep"),
        ({"answers": {"greedy": True}}, "answers: prompts: give a list of texts"),
        ({"answers": {"prompts": "nowhere.jsonl"}}, "answers: prompts nowhere.jsonl: no such file"),
        ({"axes": {"lora_r": ["many"]}, "points": None}, "lora_r-many/tune:.*many"),
        ({"base": {"load": "m", "data_path": "d", "lr_decay_style": "steep"}}, "tune:.*steep"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_runs(tmp_path, changes, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        plan_of(tmp_path, **changes)


def test_prompts_of_a_file(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}])
    plan = plan_of(tmp_path, answers={"prompts": str(tmp_path / "p.jsonl")})
    assert f"--input {tmp_path / 'p.jsonl'}" in line(plan.jobs[0].steps[-1])
    write_jsonl(tmp_path / "p.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match="every line must hold `prompt`"):
        plan_of(tmp_path, answers={"prompts": str(tmp_path / "p.jsonl")})


def test_paths_that_the_sweep_reads_itself_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}])
    write_jsonl(tmp_path / "r.jsonl", [{"instruction": "q", "output": "a"}] * 4)
    changes = {"preprocess": {"input": "~/r.jsonl"}, "answers": {"prompts": "~/p.jsonl"}}
    plan = plan_of(tmp_path, base={"load": "m", "train_iters": 4}, axes={"data_size": [2, 3]}, points=None, **changes)
    part = next(step for step in plan.shared if step.kind == "records")
    part.action()
    assert len(part.output.read_text().splitlines()) in (2, 3)


ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "ablation").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_every_example_is_a_sweep(path):
    sweep = read_sweep(path)
    check_sweep(sweep)
    check_commands(make_plan(sweep, Path("out")))
    assert len(sweep.points) >= 6 and sweep.output


@pytest.mark.parametrize("page", ["ablations.md", "ablations.zh-CN.md"])
def test_the_file_in_the_documentation_is_a_sweep(page, tmp_path):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (tmp_path / "s.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.S)[1], encoding="utf-8")
    sweep = read_sweep(tmp_path / "s.yaml")
    check_sweep(sweep)
    check_commands(make_plan(sweep, tmp_path / "out"))
    assert len(sweep.points) == 14


def test_there_are_examples():
    assert len(EXAMPLES) >= 2
