"""Chat templates in a process of their own: the same text as within this one, and an end to what has none."""

import os
import signal
import sys
from contextlib import closing
from pathlib import Path

import pytest

from cluster.serving.prompts import Prompts, read_tokenizer, render_here
from cluster.serving.requests import ChatPrompt, GenerationRequest
from cluster.serving.templates import TemplateFailed, Templates
from protocol.errors import BadRequest
from tests.support.running_cluster import wait_until
from tests.support.tiny_tokenizer import write_tokenizer

CHECKOUT = Path(__file__).resolve().parents[3]
USER = {"role": "user", "content": 'the cat\nsat — 日本語 \u2028 "on" it'}
# One process for all: each of these does its harm to a message that asks for it. What is constant Jinja would make at once, for all.
EVIL = (
    "{% set what = messages[0].content %}{% set size = what | length %}"
    "{% if what == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    "{% elif what == 'width' %}{{ ('%' ~ size ~ '999999999d') % 1 }}"
    "{% elif what == 'times' %}{{ 'x' * (99999999999 * size) }}"
    "{% elif what == 'long' %}{{ 'x' * (20000000 * size) }}"
    "{% elif what == 'reach' %}{{ ''.__class__.__mro__[1].__subclasses__() }}"
    "{% else %}{{ what }}{% endif %}"
)
HASTY = (sys.executable, "-m", "tests.support.hasty_templates")


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch):
    """Where it is not what is tested, time is no limit."""
    monkeypatch.setattr("cluster.serving.templates.LIMIT_S", 60.0)


def message(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    model = write_tokenizer(tmp_path_factory.mktemp("evil"), template=EVIL)
    with closing(Templates(model, CHECKOUT, HASTY)) as templates:
        yield templates


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def templates(model):
    """Of this model, with one process until a test ends it."""
    with closing(Templates(model, CHECKOUT)) as templates:
        templates.begin()
        yield templates


def test_text_is_that_of_the_tokenizer_itself(templates, model):
    for messages in ([USER], [USER, {"role": "assistant", "content": "x" * 100_000}, USER]):
        assert templates.render(messages) == render_here(read_tokenizer(model), messages)
    with pytest.raises(TemplateFailed, match="Only the first message may be system"):
        templates.render([USER, {"role": "system", "content": "be brief"}])
    assert templates.render([USER])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process may take of memory")
@pytest.mark.parametrize("harm", ["width", "times"])
def test_template_without_measure_fails_alone(evil, harm):
    with pytest.raises(TemplateFailed):
        evil.render(message(harm))
    assert evil.render(message("hello")) == "hello"


@pytest.mark.parametrize("harm", ["long", "reach"])
def test_template_that_makes_too_much_or_reaches_for_attributes_fails_alone(evil, harm):
    with pytest.raises(TemplateFailed):
        evil.render(message(harm))
    assert evil.render(message("hello")) == "hello"


def test_template_without_end_is_ended_and_the_next_messages_are_rendered(evil):
    with pytest.raises(TemplateFailed, match="takes longer than"):
        evil.render(message("loop"))
    assert evil.render(message("hello")) == "hello"


def test_failure_is_a_refusal_that_names_the_template(tmp_path):
    def render(*_):
        raise TemplateFailed("it takes longer than 5 s")

    prompts = Prompts.load(write_tokenizer(tmp_path), render)
    with pytest.raises(BadRequest, match="chat template refuses these messages: it takes longer"):
        prompts.encode(GenerationRequest(prompt=ChatPrompt((USER,)), max_tokens=1))


def test_process_that_stands_still_is_ended_whether_it_was_about_to_read_or_to_answer(templates, monkeypatch):
    for messages in ([USER], message("x" * 1_000_000)):  # the second fills the pipe
        assert templates.render([USER])
        os.kill(templates._apart.process.pid, signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr("cluster.serving.templates.LIMIT_S", 0.1)
            with pytest.raises(TemplateFailed):
                templates.render(messages)
    assert templates.render([USER])


def test_process_that_is_gone_is_replaced_and_ends_with_whoever_asks(templates):
    assert templates.render([USER])
    first = templates._apart.process.pid
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: templates._apart.process.poll() is not None, "it is gone")
    assert templates.render([USER])
    second = templates._apart.process
    assert second.pid != first
    second.stdin.close()
    wait_until(lambda: second.poll() is not None, "it ends when nobody can ask any more")
    templates.close()
    with pytest.raises(TemplateFailed):
        templates.render([USER])
