"""`lm_eval --model local-completions`, unmodified, on a local task: its scores are those of our own Score API."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import yaml
from served import Served

from braid_orchestrator.engine.requests import ScoreRequest

pytestmark = [
    pytest.mark.skipif(
        find_spec("lm_eval") is None, reason="needs lm_eval, which is absent: pip install '.[clients]'"
    ),
    pytest.mark.timeout(300),
]

QUESTIONS = [
    {
        "question": "the inner",
        "choices": [" thread", " other"],
        "answer": 0,
        "text": "the inner thread, then",
    },
    {"question": "in there", "choices": [" is é", " zz", " the"], "answer": 1, "text": "in there is é 🧶"},
    {"question": "other", "choices": ["wise", " the thing"], "answer": 1, "text": "other than the thing"},
]
COMMON = {"dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}"}
TASKS: list[dict[str, Any]] = [
    {
        "task": "braid_choices",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    {
        "task": "braid_words",
        "output_type": "generate_until",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 6, "temperature": 0},
        "metric_list": [{"metric": "exact_match"}],
    },
    {
        "task": "braid_bits",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
]


@pytest.fixture(scope="module")
def outcome(braid: Served, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict[str, list[dict]]]:
    """The results, and what was asked and answered by task."""
    folder = tmp_path_factory.mktemp("lm_eval")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS), encoding="utf-8")
    for task in TASKS:
        text = yaml.safe_dump(COMMON | {"dataset_kwargs": {"data_files": {"test": str(data)}}} | task)
        (folder / f"{task['task']}.yaml").write_text(text)
    arguments = {
        "model": "tiny",
        "base_url": f"{braid.url}/v1/completions",
        "tokenizer_backend": "remote",
        "max_length": 256,
        "num_concurrent": 2,
        "max_retries": 1,
    }
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())]
    command += ["--tasks", ",".join(task["task"] for task in TASKS), "--include_path", str(folder)]
    command += ["--output_path", str(folder / "out"), "--log_samples", "--batch_size", "4"]
    offline = {name: "1" for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **offline, "HF_HOME": str(folder / "hf"), "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    [results] = (folder / "out").rglob("results_*.json")
    samples = {
        task["task"]: [
            json.loads(line)
            for path in (folder / "out").rglob(f"samples_{task['task']}_*.jsonl")
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for task in TASKS
    }
    return json.loads(results.read_text())["results"], samples


def score(braid: Served, token_ids: tuple[int, ...]) -> list[float]:
    return list(asyncio.run(braid.service.score(ScoreRequest(token_ids))).logprobs)


def ids_of(braid: Served, text: str) -> tuple[int, ...]:
    return braid.service.text().encode(text, add_special_tokens=False).token_ids


def test_choices_are_scored_as_by_our_own_api(
    braid: Served, outcome: tuple[dict, dict[str, list[dict]]]
) -> None:
    results, samples = outcome
    right = 0
    assert len(samples["braid_choices"]) == len(QUESTIONS)
    for sample in samples["braid_choices"]:
        question = sample["doc"]
        expected = []
        for choice, (answer,) in zip(question["choices"], sample["resps"], strict=True):
            whole = ids_of(braid, question["question"] + choice)
            context = len(ids_of(braid, question["question"]))
            ours = score(braid, whole)[context:]
            assert float(answer[0]) == pytest.approx(sum(ours), abs=1e-3)
            likeliest = asyncio.run(braid.service.score(ScoreRequest(whole, top_logprobs=1))).top_logprobs
            greedy = all(
                top[0].token_id == token
                for top, token in zip(likeliest[context:], whole[context:], strict=True)
            )
            assert str(answer[1]) == str(greedy)
            expected.append(sum(ours))
        right += expected.index(max(expected)) == question["answer"]
    assert results["braid_choices"]["acc,none"] == pytest.approx(right / len(QUESTIONS))


def test_generations_are_the_greedy_ones(braid: Served, outcome: tuple[dict, dict[str, list[dict]]]) -> None:
    _, samples = outcome
    with braid.http() as http:
        for sample in samples["braid_words"]:
            body = {
                "prompt": sample["doc"]["question"],
                "max_tokens": 6,
                "temperature": 0,
                "stop": ["\n\n", "<eos>"],
            }
            answer = http.post("/v1/completions", json=body).json()
            assert sample["resps"] == [[answer["choices"][0]["text"]]]


def test_bits_per_byte_are_ours(braid: Served, outcome: tuple[dict, dict[str, list[dict]]]) -> None:
    results, _ = outcome
    eos = ids_of(braid, "<eos>")
    total, num_bytes = 0.0, 0
    for question in QUESTIONS:
        total += sum(score(braid, eos + ids_of(braid, question["text"])))
        num_bytes += len(question["text"].encode())
    expected = -total / math.log(2) / num_bytes
    assert results["braid_bits"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-4)
