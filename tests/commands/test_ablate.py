"""`tuneval ablate` for real: stopped, killed, continued, with a point that fails, on the embedded tiny model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
import yaml
from browser import CHROMIUM, look

from tuneval.cli import main
from tuneval.files import read_json, read_jsonl

ASSETS = Path(str(resources.files("tuneval.assets")))
STEPS = 16


def sweep_file(folder: Path, **changes) -> Path:
    values = {
        "output": str(folder / "out"),
        "base": {"load": str(ASSETS / "model"), "fp32": True, "seq_length": 128, "global_batch_size": 8,
                 "train_iters": STEPS, "eval_interval": 10, "eval_iters": 1, "save_interval": 5},
        "preprocess": {"input": str(ASSETS / "records.jsonl")},
        "evaluate": {"task_data_path": str(ASSETS / "exam"), "shots": 0, "limit": 5},
        "answers": {"prompts": ["猫头鹰属于哪一类动物？"], "greedy": True, "max_new_tokens": 8},
        "axes": {"lora_r": [2, 8], "lr": ["1e-3", "3e-3"]},
        "points": [{"name": "broken", "lora_r": 4, "lora_target_modules": ["nothing_like_it"]}],
        **changes,
    }  # fmt: skip
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}), encoding="utf-8")
    return path


def start(path: Path, *flags: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    return subprocess.Popen(
        [sys.executable, "-m", "tuneval", "ablate", str(path), *flags],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(condition, what: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def steps_of(run: Path) -> list[int]:
    return [row["step"] for row in read_jsonl(run / "metrics.jsonl")] if (run / "metrics.jsonl").is_file() else []


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> dict:
    """Stopped in the first point, killed in the second, then run to its end."""
    folder = tmp_path_factory.mktemp("ablate")
    path, out = sweep_file(folder), folder / "out"
    first, second = out / "points" / "lora_r-2.lr-1e-3", out / "points" / "lora_r-2.lr-3e-3"

    stopped = start(path)
    wait_for(lambda: len(steps_of(first)) >= 3, "no step of the first point")
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate(timeout=180)[0]
    left = steps_of(first)

    killed = start(path)
    wait_for(lambda: len(steps_of(second)) >= 3, "no step of the second point")
    done_before = {p.name: p.stat().st_mtime_ns for p in (out / "state").iterdir()}
    killed.kill()
    killed.wait(timeout=60)
    killed.stdout.close()

    last = start(path)
    output = last.communicate(timeout=600)[0]
    return {
        "out": out, "path": path, "stopped": stopped.returncode, "said": said, "left": left, "before": done_before,
        "status": last.returncode, "output": output,
    }  # fmt: skip


@pytest.mark.slow
def test_a_stopped_sweep_saves_and_says_so(story):
    assert story["stopped"] == 128 + signal.SIGTERM
    assert "stopping; what runs saves first" in story["said"]
    assert 3 <= len(story["left"]) < STEPS, "the run was left in the middle"
    outcome = read_json(story["out"] / "state" / "lora_r-2.lr-1e-3.tune.json")
    assert outcome["status"] == "done", "and went on later"


@pytest.mark.slow
def test_what_was_done_is_not_done_again(story):
    state = story["out"] / "state"
    done = {name: time for name, time in story["before"].items() if read_json(state / name)["status"] == "done"}
    assert any(name.startswith("shared.preprocess") for name in done)
    assert "lora_r-2.lr-1e-3.tune.json" in done and "lora_r-2.lr-1e-3.evaluate.json" in done
    assert {name: (state / name).stat().st_mtime_ns for name in done} == done
    assert "shared: preprocess" not in story["output"]


@pytest.mark.slow
def test_every_point_came_to_its_end(story):
    points = sorted(p.name for p in (story["out"] / "points").iterdir())
    assert len(points) == 4
    for point in points:
        run = story["out"] / "points" / point
        assert steps_of(run) == list(range(1, STEPS + 1))
        assert (run / "evaluation/ceval-official/results.json").is_file() and (run / "adapter").is_dir()
        assert read_jsonl(run / "samples.jsonl")[0]["settings"]["greedy"] is True
        assert not (run / "checkpoints").exists(), "--keep model"


@pytest.mark.slow
def test_a_failing_point_is_recorded_and_the_rest_goes_on(story):
    assert story["status"] == 1
    outcome = read_json(story["out"] / "state" / "broken.tune.json")
    assert outcome["status"] == "failed" and "nothing_like_it" in outcome["error"]
    assert "FAILED" in story["output"] and "best so far" in story["output"]


@pytest.mark.slow
def test_the_sweep_ends_in_its_report(story):
    page = (story["out"] / "report.html").read_text(encoding="utf-8")
    for part in (
        "figure-effect-0",
        "figure-effect-1",
        "figure-heat-0",
        "figure-against",
        "figure-cost",
        "figure-overlay-axis-1",
    ):
        assert f'id="{part}"' in page
    rows = read_json(story["out"] / "report.json")["points"]
    assert [r["status"] for r in rows] == ["done"] * 4 + ["failed"]
    for row in rows[:4]:
        result = read_json(story["out"] / "points" / row["run"] / "evaluation/ceval-official/results.json")
        assert row["score"] == result["micro"]["accuracy"]
    assert (story["out"] / "report.csv").read_text(encoding="utf-8").count("\n") == 6
    assert "nothing_like_it" in page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_report(story, tmp_path, width):
    source = (story["out"] / "report.html").read_text(encoding="utf-8")
    seen = look(source, tmp_path, width)
    assert seen.console == "" and seen.scroll_width <= width
    assert seen.drawn == source.count("<figure id=")


@pytest.mark.slow
def test_again_does_nothing_but_the_failed_point(story, capfd):
    assert main(["ablate", str(story["path"]), "--skip-failed"]) == 1
    said = capfd.readouterr().err
    assert begun(said) == []
    assert main(["ablate", str(story["path"])]) == 1
    assert begun(capfd.readouterr().err) == ["5/5 broken: tune"], "the failed one is tried again"


def begun(said: str) -> list[str]:
    """The steps that a sweep says it runs."""
    return [line for line in said.splitlines() if line.endswith((": tune", ": evaluate", ": generate"))]


@pytest.mark.slow
def test_shared_settings_may_not_change(story, tmp_path, capsys):
    values = yaml.safe_load(story["path"].read_text(encoding="utf-8"))
    values["base"]["global_batch_size"] = 4
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert main(["ablate", str(tmp_path / "other.yaml")]) == 2
    assert "global_batch_size was 8, is 4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_lists_steps_tokens_and_measured_time(tmp_path, capsys):
    path = sweep_file(tmp_path, points=None, axes={"lora_r": [2, 8], "data_size": [40, "all"]})
    assert main(["ablate", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    manifests = sorted((tmp_path / "out" / "shared").glob("*_manifest.json"), key=lambda p: read_json(p)["samples"])
    small, whole = map(read_json, manifests)
    assert small["samples"] == 40 < whole["samples"]
    for manifest in (small, whole):
        assert said.count(f"{round(STEPS * 8 * manifest['tokens'] / manifest['samples']):,}") == 2
    assert "4 points" in said and "not measured" not in said and said.count("to do") == 4
    assert not (tmp_path / "out" / "points").exists()
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".measure")] == []
    assert main(["ablate", str(path), "--dry-run", "--measure-steps", "0"]) == 0
    assert capsys.readouterr().out.count("not measured") == 4


def test_points_that_fail_at_once(tmp_path, capsys):
    """Several at a time; what a failed shared step would have made is not waited for."""
    path = sweep_file(tmp_path, preprocess={"input": str(tmp_path / "nowhere.json")}, evaluate=None, answers=None,
                      points=None)  # fmt: skip
    assert main(["ablate", str(path), "--jobs", "2"]) == 1
    outcomes = [read_json(p) for p in (tmp_path / "out" / "state").glob("lora*.json")]
    assert [o["status"] for o in outcomes] == ["skipped"] * 4
    assert all("nowhere.json" in o["error"] for o in outcomes)
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_exam_whose_answers_are_secret_fails(tmp_path, capsys):
    """It ends well, but there is no score: the point is not done."""
    shutil.copytree(ASSETS / "exam", tmp_path / "exam")
    rows = (ASSETS / "exam" / "val" / "chemical_elements_val.csv").read_text(encoding="utf-8").splitlines()[:3]
    (tmp_path / "exam" / "test").mkdir()
    secret = "\n".join(row.rpartition(",")[0] for row in rows)
    (tmp_path / "exam" / "test" / "chemical_elements_test.csv").write_text(secret, encoding="utf-8")
    exam = {"task_data_path": str(tmp_path / "exam"), "split": "test", "shots": 0}
    base = {"load": str(ASSETS / "model"), "fp32": True, "global_batch_size": 8, "train_iters": 1, "eval_iters": 0}
    path = sweep_file(tmp_path, base=base, axes={"lora_r": [2]}, evaluate=exam, answers=None, points=None)
    assert main(["ablate", str(path)]) == 1
    outcome = read_json(tmp_path / "out" / "state" / "lora_r-2.evaluate.json")
    assert outcome["status"] == "failed" and "answers of this split are secret" in outcome["error"]


def test_other_files_are_left_alone(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert main(["ablate", str(sweep_file(tmp_path))]) == 2
    assert "holds other files" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize(
    "flags, said", [(["--jobs", "0"], "--jobs 0"), (["--measure-steps", "-1"], "--measure-steps -1")]
)
def test_flags_out_of_range(tmp_path, capsys, flags, said):
    assert main(["ablate", str(sweep_file(tmp_path)), *flags]) == 2
    assert said in capsys.readouterr().err
