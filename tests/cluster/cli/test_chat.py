"""A conversation on a terminal, as a person sees it, against a fake API."""

import json
import os
import stat
import sys
import threading

import pytest

from tests.cluster.cli.test_cli_commands import CHECKOUT
from tests.support.fake_api import ENDING, chat_piece
from tests.support.screen import Screen


@pytest.fixture(autouse=True)
def served(api):
    models = {"object": "list", "data": [{"id": "tandem-demo"}]}
    api.answers["/v1/models"] = (200, json.dumps(models).encode())


@pytest.fixture
def chat(home, api):
    """Begins a chat on a screen; several are of one home."""
    screens = []

    def begin(columns=80, **environment):
        surroundings = {
            name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "COLUMNS", "LINES")
        }
        screen = Screen(
            [sys.executable, "-m", "cluster.cli", "chat"],
            environment=surroundings | {"TANDEM_HOME": str(home.root), "PYTHONPATH": str(CHECKOUT)} | environment,
            columns=columns,
        )
        screens.append(screen)
        screen.await_text("/help lists the commands")
        screen.await_prompt()
        return screen

    yield begin
    for screen in screens:
        screen.close()


def questions(api):
    return [[message["content"] for message in body["messages"]] for path, body in api.asked if "messages" in body]


def test_an_answer_has_a_line_with_its_route_and_speed(api, chat):
    screen = chat()
    screen.type("hello\r")
    screen.await_text("Héllo")
    screen.await_text("[distributed-no-cache: short enough; first token after 0.25 s")
    screen.await_prompt()
    screen.type("\x04")
    assert screen.end() == 0


def test_line_under_an_answer_is_broken_between_words(api, chat):
    screen = chat(columns=60)
    screen.type("hello\r")
    screen.await_text("tokens/s]")
    shown = [line for line in screen.text.splitlines() if "short enough" in line or "tokens/s]" in line]
    assert shown == ["[distributed-no-cache: short enough; first token after 0.25", "s, then 12 tokens/s]"]


def test_pasted_lines_are_one_question(api, chat):
    screen = chat()
    screen.paste("first\nsecond\nthird")
    screen.await_text("third")
    assert api.asked == []
    screen.type("\r")
    screen.await_text("Héllo")
    assert questions(api) == [["first\nsecond\nthird"]]


def test_escape_and_enter_make_a_line(api, chat):
    screen = chat()
    screen.type("one\x1b\rtwo\r")
    screen.await_text("Héllo")
    assert questions(api) == [["one\ntwo"]]


def test_what_was_typed_is_there_in_the_next_chat_and_for_nobody_else(home, api, chat):
    first = chat()
    first.type("the question of before\r")
    first.await_text("Héllo")
    first.await_prompt()
    first.type("/exit\r")
    assert first.end() == 0
    assert stat.S_IMODE((home.root / "chat_history").stat().st_mode) == 0o600
    second = chat()
    second.type("\x1b[A\x1b[A")
    second.await_text("the question of before")
    second.type("\r")
    second.until(lambda: questions(api) == [["the question of before"]] * 2, "the same question")


def test_interrupting_an_answer_keeps_the_chat_and_leaves_the_conversation_as_it_was(api, chat):
    held = threading.Event()

    def endless():
        yield chat_piece("It never ends")
        held.wait(60)

    answer = api.answers["/v1/chat/completions"]
    api.answers["/v1/chat/completions"] = (200, endless)
    screen = chat()
    screen.type("hello\r")
    screen.await_text("It never ends")
    screen.type("\x03")
    screen.await_text("(interrupted)")
    screen.await_prompt()
    assert "^C" not in screen.text
    held.set()
    api.answers["/v1/chat/completions"] = answer
    screen.type("again\r")
    screen.await_text("Héllo")
    assert questions(api) == [["hello"], ["again"]]


def test_interrupting_an_empty_prompt_says_how_to_end(api, chat):
    screen = chat()
    screen.type("\x03")
    screen.await_text("Ctrl-D or /exit ends")
    screen.await_prompt()
    screen.type("half a ques")
    screen.await_text("half a ques")
    screen.type("\x03")
    screen.await_prompt()
    screen.type("a whole one\r")
    screen.await_text("Héllo")
    assert questions(api) == [["a whole one"]]


def test_commands_change_what_is_asked(api, chat, tmp_path):
    screen = chat()
    for command, says in (
        ("/strategy distributed-cached", "answers by distributed-cached"),
        ("/system Be brief.", "told that before all else"),
        ("/model tandem-demo", "asks for tandem-demo"),
        ("/nothing", "There is no command /nothing"),
        ("/strategy magic", "There is no strategy 'magic'"),
    ):
        screen.type(f"{command}\r")
        screen.await_text(says)
        screen.await_prompt()
    screen.type("hello\r")
    screen.await_text("Héllo")
    body = api.asked[-1][1]
    assert (body["strategy"], body["model"]) == ("distributed-cached", "tandem-demo")
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    screen.type("/retry\r")
    screen.until(lambda: questions(api) == [["Be brief.", "hello"]] * 2, "the same question")
    screen.await_text("short enough", times=2)
    screen.await_prompt()
    screen.type(f"/save {tmp_path}/talk.json\r")
    screen.await_text("2 messages are in")
    screen.await_prompt()
    screen.type("/clear\r")
    screen.await_text("forgotten")
    screen.await_prompt()
    screen.type(f"/load {tmp_path}/talk.json\r")
    screen.await_text("goes on behind 2 messages")
    screen.await_prompt()
    screen.type("more\r")
    screen.until(
        lambda: questions(api)[-1] == ["Be brief.", "hello", "Héllo", "more"], "the question behind what was saved"
    )


def test_commands_are_completed(chat):
    screen = chat()
    screen.type("/strategy distributed-c\t")
    screen.await_text("distributed-cached")


MARKDOWN = "# Caches\n\nA **cache** keeps *keys*.\n\n- one\n- two\n\n```python\nprint(1)\n\nprint(2)\n```\n\nThe end."


@pytest.mark.parametrize("columns", [60, 80])
def test_markdown_is_shown_as_what_it_means(api, chat, columns):
    pieces = [MARKDOWN[at : at + 7] for at in range(0, len(MARKDOWN), 7)]
    api.answers["/v1/chat/completions"] = (200, b"".join(map(chat_piece, pieces)) + chat_piece("", "stop") + ENDING)
    screen = chat(columns=columns)
    screen.type("hello\r")
    screen.await_text("short enough")
    shown = screen.text
    for word in ("Caches", "A cache keeps keys.", " • one", " • two", "print(1)", "print(2)", "The end."):
        assert shown.count(word) == 1, word
    assert "**" not in shown
    assert "```" not in shown


def test_no_colour_where_none_is_wanted(api, chat):
    api.answers["/v1/chat/completions"] = (200, chat_piece("# A heading\n\nand `code`", "stop") + ENDING)
    screen = chat(NO_COLOR="1")
    screen.type("hello\r")
    screen.await_text("short enough")
    answer = screen.seen[screen.seen.index(b"A heading") :]
    assert not any(b"\x1b[%d" % colour in answer for colour in (*range(30, 38), *range(40, 48), *range(90, 98)))
