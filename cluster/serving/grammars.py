"""What callers want an answer to be, as a grammar that the last stage can hold it to, or as what of it is not supported.

Knows llguidance's terms. `compile_grammar` is what a process of its own does (`grammar_process`): a schema or an expression is
a program of whoever sends it, and some take minutes, or end the process.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cluster.serving.closed_schemas import closed
from cluster.serving.requests import Structure
from protocol.errors import in_one_line

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from llguidance._lib import JsonCompileOptions

# Between JSON's signs: enough for what models write, and an end for one that would write nothing else.
_WHITESPACE = r"[ ]{1,2}|\r?\n[ \t]{0,24}"
_JSON_OPTIONS: "JsonCompileOptions" = {
    "whitespace_flexible": True,
    "whitespace_pattern": _WHITESPACE,
    "lenient": False,
    "coerce_one_of": False,
}
# Of multipleOf, as a fraction: up to there a product is exact.
_MOST_EXACT = 1 << 16
# Numbers that are written the same everywhere.
_LEAST_FRACTION, _MOST_WHOLE = 1e-4, 1 << 53
_OPTIONS_KEY = "x-guidance"

# Makes the grammar of what an answer is to be. Raises GrammarRefused.
MakeGrammar = Callable[[Structure], str]


class GrammarRefused(Exception):
    """An answer cannot be held to this; it says what of it is not supported, as a clause."""


def no_grammars(_: Structure) -> str:
    """For a model of which nothing is known but its tokenizer. Raises GrammarRefused."""
    raise GrammarRefused("the model has no tokenizer.json that can be read, which this needs")


def endless(_: Structure) -> str:
    """For a model whose answers end only where they are cut. Raises GrammarRefused."""
    raise GrammarRefused("the model has no token that ends an answer")


def call_begins(name: str) -> str:
    """The text of a call up to its arguments."""
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '


CALL_ENDS = "}"


def compile_grammar(structure: Structure, tokenizer: "LLTokenizer") -> str:
    """llguidance's text for it. Raises GrammarRefused for what is not supported, or is nothing that it could be."""
    from llguidance import LLMatcher, LLParserLimits

    try:
        text = _as_grammar(structure)
    except (ValueError, RecursionError) as error:  # of JSON, and of the library, for what it cannot read
        raise GrammarRefused(in_one_line(str(error))) from error
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if not matcher.is_error():
        matcher.compute_bitmask()  # what takes long takes it here
    if matcher.is_error():
        raise GrammarRefused(in_one_line(matcher.get_error()))
    if warnings := matcher.get_grammar_warnings():
        raise GrammarRefused(in_one_line(warnings[0]))
    return text


@cache
def tokens_of(model_path: Path) -> "LLTokenizer":
    """What grammars are compiled for. Raises GrammarRefused where the model has no tokenizer.json."""
    from llguidance import LLTokenizer

    try:
        return LLTokenizer(str(model_path / "tokenizer.json"))
    except ValueError as error:
        raise GrammarRefused("the model has no tokenizer.json that can be read, which this needs") from error


def _as_grammar(structure: Structure) -> str:
    from llguidance import LLMatcher, grammar_from

    source = structure.source
    match structure.kind:
        case "json":
            schema = _checked(msgspec.json.decode(source))
            return str(LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS))
        case "regex":
            return str(LLMatcher.grammar_from_regex(source))
        case "choice":
            choices = " | ".join(map(json.dumps, msgspec.json.decode(source)))
            return str(LLMatcher.grammar_from_lark(f"start: {choices}"))
        case "calls":
            return str(LLMatcher.grammar_from_lark(_calls(msgspec.json.decode(source))))
    return grammar_from("grammar", source)


def _calls(tools: Mapping[str, Any]) -> str:
    """A call of one of the tools. tools: the schema of each one's arguments, by its name; None where there is no such tool."""
    if not tools:
        raise GrammarRefused("there are no tools; send some")
    rules = ["start: " + " | ".join(f"call_{index}" for index in range(len(tools)))]
    for index, (name, parameters) in enumerate(tools.items()):
        if parameters is None:
            raise GrammarRefused(f"{name!r} is not among the tools")
        schema = json.dumps({"type": "object"} | _checked(parameters) | {_OPTIONS_KEY: _JSON_OPTIONS})
        rules.append(f"call_{index}: {json.dumps(call_begins(name))} args_{index} {json.dumps(CALL_ENDS)}")
        rules.append(f"args_{index}: %json {schema}")
    return "\n".join(rules)


def _checked(schema: Any) -> dict[str, Any]:
    """A schema as it is meant, without what is for llguidance. Raises GrammarRefused for what that would follow but in part."""
    if not isinstance(schema, dict):
        raise GrammarRefused("a JSON schema is an object")
    _require_followed(schema)
    return closed({name: value for name, value in schema.items() if name != _OPTIONS_KEY})


def _require_followed(schema: Any) -> None:
    if isinstance(schema, dict):
        _require_names(schema)
        _require_exact(schema.get("multipleOf"))
    elif isinstance(schema, float) and schema and not _LEAST_FRACTION <= abs(schema) < _MOST_WHOLE:
        raise GrammarRefused(f"the number {schema} is too large or too small to be written in one way only")
    for value in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _require_followed(value)


def _require_names(schema: Mapping[str, Any]) -> None:
    """Where names are free nothing keeps one from coming twice."""
    least, required = schema.get("minProperties"), schema.get("required", [])
    if isinstance(least, int) and isinstance(required, list) and least > len(required) + 1:
        raise GrammarRefused(
            f"minProperties {least} where {len(required)} are required: two properties beyond those could have one name"
        )


def _require_exact(multiple_of: Any) -> None:
    if isinstance(multiple_of, float) and multiple_of.as_integer_ratio()[1] > _MOST_EXACT:
        raise GrammarRefused(
            f"multipleOf {multiple_of}: its multiples are no binary fractions, so that validators disagree about them"
        )
