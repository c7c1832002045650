"""Aider, whose edits are text in the answer."""

from pathlib import Path

from calls import PLAYED, call, make_all, run, script

QUIET = ["--yes-always", "--no-git", "--no-show-model-warnings", "--no-show-release-notes", "--map-tokens=0"]


def aider(words, *options):
    where = ["--model", "openai/default", "--openai-api-base", f"{PLAYED}/v1", "--openai-api-key", "unused"]
    return run("aider", *where, *QUIET, *options, "--message", words)


@call
def answer():
    assert "It is done." in aider(script("It is done."), "--chat-mode", "ask")


@call
def whole_file():
    aider(script("Here it is.\n\nwhole.txt\n```\nwritten\n```\n"), "--edit-format", "whole", "whole.txt")
    assert Path("whole.txt").read_text() == "written\n"


@call
def edit_not_streamed():
    Path("edited.txt").write_text("one\ntwo\n")
    block = "edited.txt\n```\n<<<<<<< SEARCH\ntwo\n=======\nthree\n>>>>>>> REPLACE\n```\n"
    aider(script(block), "--edit-format", "diff", "--no-stream", "edited.txt")
    assert Path("edited.txt").read_text() == "one\nthree\n"


make_all()
