"""C-Eval scoring: tuneval against lm-evaluation-harness, same model, same subjects, 5 shots. Time and letters.

    python benchmarks/ceval_vs_lm_eval.py MODEL_FOLDER CEVAL_ZIP [--subjects a,b] [--limit N] [--dtype bf16]
        [--batch-sizes 1 2 4 8] [--runs 3] [--output FILE.json]

Needs lm-evaluation-harness (`pip install -e '.[lm-eval]'`). The harness runs its own ceval-valid tasks: their YAML files
as installed, the data set replaced by parquet files of the same questions, every column text (a csv reader that guesses
types would turn a choice `1.0` into a number). Both engines score in this process, one after the other, on the same
loaded weights; the harness through transformers' own attention, at each batch size, the best counts. Scoring time is
from prompts to scores: loading the model and the data is left out on both sides.

Letters are compared question by question in style `lm_eval`. Where they differ, both margins are listed: the harness
takes log softmax of bf16 logits, whose steps are 0.06 to 0.125 at their usual size.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path

import torch
import yaml

from tuneval import runtime
from tuneval.checkpoints.load import Loaded, load_model
from tuneval.evaluation.catalogue import STYLES
from tuneval.evaluation.exam import LETTERS, Exam
from tuneval.evaluation.margins import bf16_step, decide
from tuneval.evaluation.model_scorer import ModelScorer
from tuneval.evaluation.styles import all_prompts
from tuneval.evaluation.tasks import TASKS, load_exam
from tuneval.model.decoder import Decoder

STYLE = STYLES["ceval", "lm_eval"]
SHOTS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("exam", type=Path)
    parser.add_argument("--subjects", default="law,logic,art_studies,high_school_biology,computer_network,physician")
    parser.add_argument("--limit", type=int, default=None, help="questions a subject; default all")
    parser.add_argument("--dtype", default="bf16", choices=list(runtime.DTYPES))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument(
        "--runs", type=int, default=3, help="of tuneval and of the harness's best batch size; medians count"
    )
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    runtime.prepare()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    subjects = () if options.subjects == "all" else tuple(options.subjects.split(","))
    exam = load_exam(TASKS["ceval"], options.exam, "val", subjects, options.limit, SHOTS)
    loaded = load_model(options.model, options.dtype)
    theirs = harness(loaded, exam, options.batch_sizes, options.runs)
    ours = tuneval(loaded, exam, options.batch_tokens, options.runs)
    best = min(theirs["seconds"].values())
    report = {
        "questions": sum(map(len, exam.questions.values())),
        "subjects": list(exam.subjects),
        "dtype": options.dtype,
        "versions": {**runtime.versions(), "lm_eval": metadata.version("lm_eval")},
        "machine": runtime.machine(),
        "lm_eval": {"seconds by batch size": theirs["seconds"], "seconds, best": best},
        "tuneval": {"seconds": ours["seconds"], "batch_tokens": options.batch_tokens},
        "times faster": round(best / ours["seconds"], 2),
        "letters": compare(exam, ours["scores"], theirs["scores"]),
    }
    print(json.dumps(report, ensure_ascii=False, indent=2))
    if options.output:
        options.output.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def tuneval(loaded: Loaded, exam: Exam, batch_tokens: int, runs: int) -> dict:
    """Median seconds, and the log probability of each letter of each question."""
    scorer = ModelScorer(loaded, Decoder(loaded.model).eval(), None, batch_tokens)
    seconds, scores = [], []
    for _ in range(runs):
        started, scores = time.perf_counter(), []
        for subject, prompts in all_prompts(STYLE, exam, SHOTS, chat=False).items():
            answers = STYLE.decision_for(SHOTS).answers(scorer, prompts, exam.questions[subject], lambda n: None)
            scores += [a.scores for a in answers]
        seconds.append(time.perf_counter() - started)
        print(f"tuneval: {seconds[-1]:.1f} s", flush=True)
    return {"seconds": round(statistics.median(seconds), 2), "scores": scores}


def harness(loaded: Loaded, exam: Exam, batch_sizes: list[int], runs: int) -> dict:
    """Seconds by batch size (of the best one the median of `runs`), and the log probabilities."""
    from lm_eval.models.huggingface import HFLM

    loaded.model.set_attn_implementation("sdpa")
    requests = harness_requests(exam)
    seconds, scores = {}, []

    def run(size: int) -> float:
        nonlocal scores
        lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=size)
        started = time.perf_counter()
        with torch.inference_mode():
            found = lm.loglikelihood(requests, disable_tqdm=True)
        scores = [
            dict(zip(LETTERS, (value for value, _ in found[i : i + 4]))) for i in range(0, len(found), len(LETTERS))
        ]
        taken = time.perf_counter() - started
        print(f"lm_eval, batch {size}: {taken:.1f} s", flush=True)
        return taken

    for size in batch_sizes:
        seconds[size] = run(size)
    best = min(seconds, key=seconds.__getitem__)
    seconds[best] = statistics.median([seconds[best], *(run(best) for _ in range(runs - 1))])
    loaded.model.set_attn_implementation("tuneval")
    return {"seconds": {str(size): round(s, 2) for size, s in seconds.items()}, "scores": scores}


def harness_requests(exam: Exam) -> list:
    """The harness's own requests for its own ceval-valid tasks over this exam's questions."""
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        names = [write_task(Path(folder), exam, subject) for subject in exam.subjects]
        tasks = TaskManager(include_path=folder).load(names)["tasks"]
        requests = []
        for name in names:
            task = tasks[name]
            task.set_config("num_fewshot", SHOTS)
            task.build_all_requests(limit=None, rank=0, world_size=1)
            requests += task.instances
    return requests


def write_task(folder: Path, exam: Exam, subject: str) -> str:
    """The harness's YAML of a subject with the data set replaced."""
    import lm_eval
    import pyarrow
    import pyarrow.parquet

    installed = Path(lm_eval.__file__).parent / "tasks/ceval"
    settings = yaml.safe_load((installed / "_default_ceval_yaml").read_text(encoding="utf-8"))
    settings |= yaml.safe_load((installed / f"ceval-valid_{subject}.yaml").read_text(encoding="utf-8"))
    files = {}
    for split, rows in (("val", exam.questions[subject]), ("dev", exam.dev[subject])):
        columns = {"question": [q.question for q in rows], "answer": [q.answer for q in rows]}
        columns |= {letter: [q.choices[letter] for q in rows] for letter in LETTERS}
        files[split] = str(folder / f"{subject}_{split}.parquet")
        pyarrow.parquet.write_table(pyarrow.table(columns), files[split])
    name = f"local_{settings['task']}"
    settings |= {"task": name, "dataset_path": "parquet", "dataset_kwargs": {"data_files": files}}
    for unused in ("include", "dataset_name"):
        settings.pop(unused, None)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return name


def compare(exam: Exam, ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict:
    """Letters that differ, each with both margins, and how far the log probabilities are apart."""
    questions = [q for rows in exam.questions.values() for q in rows]
    differing = []
    for question, a, b in zip(questions, ours, theirs, strict=True):
        (mine, margin), (other, their_margin) = decide(a), decide(b)
        if mine != other:
            explained = their_margin <= 2 * bf16_step(20.0)  # logits of the letters are 16 to 32 as a rule
            differing.append(
                {
                    "question": f"{question.subject} {question.id}",
                    "tuneval": mine,
                    "margin": round(margin, 4),
                    "lm_eval": other,
                    "its margin": round(their_margin, 4),
                    "within bf16 noise": explained,
                }
            )
    shifts = [[a[x] - b[x] for x in LETTERS] for a, b in zip(ours, theirs)]
    right = {
        name: sum(decide(s)[0] == q.answer for s, q in zip(scores, questions)) / len(questions)
        for name, scores in (("tuneval", ours), ("lm_eval", theirs))
    }
    return {
        "accuracy": {name: round(value, 4) for name, value in right.items()},
        "same": len(questions) - len(differing),
        "differ": len(differing),
        "of these, within bf16 noise": sum(d["within bf16 noise"] for d in differing),
        "exact ties": {
            name: sum(decide(s)[1] == 0 for s in scores) for name, scores in (("tuneval", ours), ("lm_eval", theirs))
        },
        "largest difference of a log probability": round(max(abs(v) for row in shifts for v in row), 4),
        "differing": differing,
    }


if __name__ == "__main__":
    main()
