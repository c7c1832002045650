"""Instructor, over OpenAI's client."""

from typing import Literal

import instructor
import openai
from calls import ASKED, TANDEM, call, make_all
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{TANDEM}/v1", api_key="unused", max_retries=0)


class Capital(BaseModel):
    """A country's capital."""

    capital: Literal["Paris", "Tokyo"]
    certain: bool


def answer_by(mode):
    asking = instructor.from_openai(client, mode=mode)
    return asking.chat.completions.create(model="default", messages=ASKED, response_model=Capital, max_retries=0)


@call
def by_tools():
    assert isinstance(answer_by(instructor.Mode.TOOLS), Capital)


@call
def by_a_schema():
    assert isinstance(answer_by(instructor.Mode.JSON_SCHEMA), Capital)


@call
def parts_as_they_come():
    asking = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    *_, last = asking.chat.completions.create_partial(model="default", messages=ASKED, response_model=Capital)
    assert last.capital in {"Paris", "Tokyo"}


@call
def several_of_a_kind():
    class Two(BaseModel):
        first: Capital
        second: Capital

    asking = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    made = asking.chat.completions.create(model="default", messages=ASKED, response_model=Two, max_retries=0)
    assert isinstance(made.second, Capital)


make_all()
