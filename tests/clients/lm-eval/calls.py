"""EleutherAI's lm-eval, with its models for local completions and chats, on two tiny tasks made here."""

import json
import os
from pathlib import Path

import lm_eval
from calls import TANDEM, call, make_all
from lm_eval.tasks import TaskManager

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin"}
CHOOSE = """
task: choose_capital
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "What is the capital of {{country}}?"
doc_to_choice: "{{choices}}"
doc_to_target: place
target_delimiter: ""
metric_list: [{metric: acc}]
"""
NAME = """
task: name_capital
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "What is the capital of {{country}}?"
doc_to_target: "The capital of {{country}} is {{capital}}"
generation_kwargs: {until: [","], max_gen_toks: 32, temperature: 0}
metric_list: [{metric: exact_match, ignore_punctuation: true}]
"""

tasks = Path.home() / "tasks"
tasks.mkdir()
data = tasks / "capitals.jsonl"
with data.open("w") as file:
    for place, (country, capital) in enumerate(CAPITALS.items()):
        choices = [f"The capital of {country} is {name}" for name in CAPITALS.values()]
        document = {"country": country, "capital": capital, "choices": choices, "place": place}
        file.write(json.dumps(document) + "\n")
for name, text in {"choose": CHOOSE, "name": NAME}.items():
    (tasks / f"{name}.yaml").write_text(text.replace("DATA", json.dumps(str(data))))


def evaluated(model, path, task, chat=True, **settings):
    """The task's results by metric, and what was asked and answered for each document. path: of the API, None for a model of its own."""
    arguments = {"model": "default", "base_url": f"{TANDEM}{path}", "max_retries": 1, **settings}
    done = lm_eval.simple_evaluate(
        model=model,
        model_args=None if path is None else arguments,
        tasks=[task],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        apply_chat_template=chat,
        bootstrap_iters=0,
    )
    return done["results"][task], [sample["filtered_resps"] for sample in done["samples"][task]]


def completions(task, **settings):
    own = {"tokenizer": os.environ["MODEL_FOLDER"], "tokenizer_backend": "huggingface"}
    return evaluated("local-completions", "/v1/completions", task, **own | settings)


@call
def loglikelihood():
    results, _ = completions("choose_capital")
    assert results["acc,none"] == 1


@call
def loglikelihood_in_batches_of_tokens_and_text():
    _, one_by_one = completions("choose_capital", chat=False)  # text of chats is more than the client can batch
    for settings in ({"batch_size": 4}, {"batch_size": 4, "tokenized_requests": False}, {"num_concurrent": 4}):
        _, batched = completions("choose_capital", chat=False, **settings)
        for alone, beside in zip(one_by_one, batched, strict=True):
            for (logprob, greedy), (again, greedy_again) in zip(alone, beside, strict=True):
                assert logprob < 0
                assert abs(logprob - again) < 1e-3, settings
                assert greedy == greedy_again, settings


@call
def loglikelihood_as_by_mlx_lms_own_evaluation():
    from mlx_lm.evaluate import MLXLM

    _, served = completions("choose_capital", chat=False)
    _, own = evaluated(MLXLM(os.environ["MODEL_FOLDER"], use_chat_template=False), None, "choose_capital", chat=False)
    for here, there in zip(served, own, strict=True):
        for (logprob, greedy), (expected, greedy_there) in zip(here, there, strict=True):
            assert abs(logprob - expected) < 1e-3, (logprob, expected)
            assert greedy == greedy_there


@call
def generate_until():
    results, _ = completions("name_capital")
    assert results["exact_match,none"] == 1


@call
def generate_until_in_batches():
    for settings in ({"batch_size": 3}, {"num_concurrent": 3}):
        results, _ = completions("name_capital", **settings)
        assert results["exact_match,none"] == 1


@call
def generate_until_in_chats():
    results, _ = evaluated("local-chat-completions", "/v1/chat/completions", "name_capital", num_concurrent=2)
    assert results["exact_match,none"] == 1


make_all()
