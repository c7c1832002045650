"""Text to token ids and back: the model's tokenizer, its chat template, and streaming text with stop strings.

Owns everything that the coordinator knows of a tokenizer. Knows nothing of HTTP, routes or workers. A prompt becomes
exactly the ids that mlx-lm makes of the same input. All functions are plain and synchronous: `encode` of a long prompt
takes a while, so the coordinator calls it in a thread. Calls are serialized here, those of long prompts apart from the
others: they have a tokenizer of their own. A `TextStream` belongs to one request and is cheap enough for the event loop.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import msgspec
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_config, load_tokenizer

from cluster.serving.grammars import MakeGrammar, compile_grammar, endless, no_grammars, tokens_of
from cluster.serving.held_answers import HeldParts, constrained, held_parts
from cluster.serving.infill import infill_marks, infilled
from cluster.serving.long_prompts import longest_token
from cluster.serving.parts import THOUGHT, Parts, begins_in, parts_of
from cluster.serving.pooling import BY_LAST_TOKEN, PoolingChoice, pooling_of
from cluster.serving.requests import LONG_CHARACTERS, ChatPrompt, GenerationRequest, Prompt, TextPrompt, TokensPrompt
from cluster.serving.sampling_defaults import sampling_defaults
from cluster.serving.templates import TemplateFailed
from cluster.serving.text_stream import TextStream
from cluster.serving.token_texts import TokenTexts
from protocol.errors import BadRequest, ContextTooLong, ModelError, in_one_line
from protocol.heap import give_back_memory
from protocol.values import Sampling

GREEDY = Sampling()
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "*.tiktoken",
    "tokenization_*.py",
)


# Makes text of chat messages, with the beginning of an answer, by a template with further variables. Raises TemplateFailed.
Render = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], str]


def read_tokenizer(model_path: Path) -> TokenizerWrapper:
    """The tokenizer of a model directory as mlx-lm reads it. Raises whatever its library raises for a damaged one."""
    end_tokens = dict(load_config(model_path)).get("eos_token_id")
    return load_tokenizer(model_path, {"trust_remote_code": False}, eos_token_ids=end_tokens)


class _Encoder:
    """A tokenizer for one thread at a time, there once it is asked for."""

    def __init__(self, make: Callable[[], TokenizerWrapper]) -> None:
        self._make = make
        self._lock = threading.Lock()

    @cached_property
    def _tokenizer(self) -> TokenizerWrapper:
        return self._make()

    def __enter__(self) -> TokenizerWrapper:
        self._lock.acquire()
        try:
            return self._tokenizer
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Prompts:
    """The tokenizer of one model.

    vocabulary_size: rows of the model's embedding, every id that `encode` returns lies below it; make: gives another one
    like `tokenizer`; render: runs its chat template, within this process where None; sampling: the model's own defaults; make_grammar:
    compiles what answers are to be; pooling: how a text becomes a vector.
    """

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        vocabulary_size: int,
        make: Callable[[], TokenizerWrapper],
        render: Render | None = None,
        sampling: Sampling = GREEDY,
        make_grammar: MakeGrammar = no_grammars,
        pooling: PoolingChoice = BY_LAST_TOKEN,
    ) -> None:
        self.sampling = sampling
        self.pooling = pooling
        self._make_grammar = make_grammar
        self._tokenizer = tokenizer
        self._render = render
        self._encoders = {False: _Encoder(lambda: tokenizer), True: _Encoder(make)}  # by whether prompts are long
        self.vocabulary_size = vocabulary_size
        self.has_chat_template: bool = tokenizer.has_chat_template
        self.eos_token_ids: frozenset[int] = frozenset(tokenizer.eos_token_ids)
        inserts = infill_marks(tokenizer) is not None
        known = {"tools": tokenizer.has_tool_calling, "thinking": tokenizer.has_thinking, "insert": inserts}
        self.abilities = tuple(name for name, has in known.items() if has)

    @classmethod
    def load(cls, model_path: Path, render: Render | None = None, make_grammar: MakeGrammar | None = None) -> Self:
        """Read the tokenizer of a model directory as mlx-lm does. render, make_grammar: as of the class.

        Raises:
            ModelError: there is no tokenizer, or it is broken.
        """
        try:
            config = dict(load_config(model_path))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{model_path} has no readable config.json: {_in_one_line(error)}") from error
        if not any(file for pattern in TOKENIZER_FILES for file in model_path.glob(pattern)):
            raise ModelError(f"{model_path} has no tokenizer; put the model's tokenizer.json beside its config.json")
        make = partial(read_tokenizer, model_path)
        try:
            tokenizer = make()
        except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
            raise ModelError(f"the tokenizer in {model_path} cannot be read: {_in_one_line(error)}") from error
        size = _vocabulary_size(config, tokenizer)
        make_grammar = make_grammar or (lambda structure: compile_grammar(structure, tokens_of(model_path)))
        return cls(tokenizer, size, make, render, sampling_defaults(model_path), make_grammar, pooling_of(model_path))

    def encode(
        self, request: GenerationRequest, context_tokens: int | None = None, contexts: int = 1
    ) -> tuple[int, ...]:
        """The token ids of a request's prompt, at least one. context_tokens: the model's, None where it is not known; contexts: how
        many of them a prompt may fill.

        Raises:
            BadRequest: no prompt where the model has no token to begin with, a model without chat template, a template that
                refuses the messages, token ids (in the prompt or in logit_bias) outside the vocabulary.
            ContextTooLong: a long text that could not fit the context, whatever its tokens; others are not looked at here.
        """
        if request.is_long and context_tokens is not None:
            self._require_room(request, context_tokens, contexts)
        try:
            return self._ids(request)
        finally:
            if request.is_long:
                give_back_memory()

    def _require_room(self, request: GenerationRequest, context_tokens: int, contexts: int) -> None:
        with self._encoders[True] as tokenizer:
            longest = longest_token(tokenizer)
        least = 0 if longest is None else request.num_characters // longest
        if least > contexts * context_tokens:
            raise ContextTooLong(
                f"the prompt has more than {least} tokens but the model's context is {context_tokens} tokens; shorten it",
                param=request.prompt_field,
            )

    def _ids(self, request: GenerationRequest) -> tuple[int, ...]:
        match request.prompt:
            case ChatPrompt():
                ids = self._encode_chat(request, request.prompt)
            case TextPrompt():
                ids = self._encode_text(request, request.prompt)
            case TokensPrompt(tokens=ids):
                pass
        if not ids:
            raise BadRequest("the prompt is empty; send some text", param=request.prompt_field)
        request.require_known(ids, self.vocabulary_size)
        return ids

    def decode(self, tokens: Sequence[int], *, are_many: bool = False) -> str:
        """The text of token ids, with that of the marks among them.

        Raises:
            BadRequest: some are outside the vocabulary.
        """
        asked = GenerationRequest(prompt=TokensPrompt(tuple(tokens)), prompt_field="tokens")
        asked.require_known(tokens, self.vocabulary_size)
        with self._encoders[are_many] as tokenizer:
            try:
                text: str = tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
            except Exception as error:  # as in `_encoded`
                raise BadRequest(
                    f"the model's tokenizer cannot decode these tokens: {_in_one_line(error)}", param="tokens"
                ) from error
            return text

    def stream(self, request: GenerationRequest, tokens: Sequence[int] = ()) -> TextStream:
        """A fresh detokenizer for one answer. tokens: of its prompt."""
        parts: Parts | HeldParts | None = None
        prompt = request.prompt
        if request.sampling.grammar is not None:
            parts = held_parts(request, self._tokenizer.think_end)
        elif isinstance(prompt, ChatPrompt):
            parts = parts_of(self._tokenizer, tokens, prompt.tools, one_call=prompt.one_call)
        return TextStream(self._tokenizer.detokenizer, request.stop, parts)

    @cached_property
    def text_of(self) -> TokenTexts:
        """The own text of single tokens."""
        return TokenTexts(self._tokenizer)

    def predicted(self, request: GenerationRequest) -> GenerationRequest:
        """With the ids of its prediction. Raises BadRequest for a text that cannot be encoded."""
        text = request.prediction
        with self._encoders[len(text) > LONG_CHARACTERS] as tokenizer:
            ids = _encoded(tokenizer, text, "prediction", add_special_tokens=False)
        return msgspec.structs.replace(request, predicted=ids)

    def constrained(self, request: GenerationRequest, tokens: Sequence[int]) -> GenerationRequest:
        """As `held_answers.constrained` has it. tokens: of its prompt."""
        can_end = any(token < self.vocabulary_size for token in self.eos_token_ids)
        thinks = isinstance(request.prompt, ChatPrompt) and begins_in(self._tokenizer, tokens) == THOUGHT
        after = tuple(self._tokenizer.think_end_tokens) if thinks else ()
        return constrained(request, self._make_grammar if can_end else endless, after)

    def unused(self, prompt: Prompt) -> tuple[str, ...]:
        """What of a prompt this model's template makes nothing of, as clauses."""
        if not isinstance(prompt, ChatPrompt):
            return ()
        template = str(getattr(self._tokenizer, "chat_template", None) or "")
        known = (
            {"enable_thinking"} if self._tokenizer.has_thinking or not prompt.options.get("enable_thinking") else set()
        )
        said = [
            f"{name} has no effect, since this model's chat template does not know it"
            for name in prompt.options
            if name not in template and name not in known
        ]
        if prompt.tools and not self._tokenizer.has_tool_calling:
            said.append(
                "this model cannot call tools, so that it answers without them"
                if prompt.forced is None
                else "this model's chat template tells it nothing of the tools"
            )
        return tuple(said)

    def _encode_chat(self, request: GenerationRequest, prompt: ChatPrompt) -> tuple[int, ...]:
        field = request.prompt_field
        if not self.has_chat_template:
            raise BadRequest(
                "this model has no chat template; use /v1/completions, or --raw on the command line", param=field
            )
        with self._encoders[request.is_long] as tokenizer:
            render = self._render or partial(render_here, tokenizer)
            try:
                text = render([dict(message) for message in prompt.messages], _variables(prompt))
            except TemplateFailed as error:
                raise BadRequest(
                    f"the model's chat template refuses these messages: {_in_one_line(error)}", param=field
                ) from error
            return _encoded(tokenizer, text, field, add_special_tokens=False)

    def _encode_text(self, request: GenerationRequest, prompt: TextPrompt) -> tuple[int, ...]:
        text = prompt.text
        with self._encoders[request.is_long] as tokenizer:
            if prompt.suffix:
                return self._encode_between(tokenizer, prompt, request.prompt_field)
            if not text and not prompt.bare:
                return _beginning(tokenizer)
            bos = tokenizer.bos_token
            with_special = not prompt.bare and (bos is None or not text.startswith(bos))
            return _encoded(tokenizer, text, request.prompt_field, add_special_tokens=with_special)

    def _encode_between(self, tokenizer: TokenizerWrapper, prompt: TextPrompt, field: str) -> tuple[int, ...]:
        marks = infill_marks(tokenizer)
        if marks is None:
            raise BadRequest(
                "suffix asks for text before other text, for which this model has no tokens; leave it out",
                param="suffix",
            )
        before, after = (
            _encoded(tokenizer, text, field, add_special_tokens=False) for text in (prompt.text, prompt.suffix)
        )
        return infilled(marks, before, after, tokenizer)

    def __repr__(self) -> str:
        return f"<Prompts vocabulary={self.vocabulary_size} chat_template={self.has_chat_template}>"


def _beginning(tokenizer: TokenizerWrapper) -> tuple[int, ...]:
    """What an empty prompt stands for: the token that begins a text or, where there is none, the one that ended the last."""
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next(((token,) for token in known if token is not None), ())


def _variables(prompt: ChatPrompt) -> dict[str, Any]:
    """What a template is given beside the messages."""
    return prompt.options | ({"tools": list(prompt.tools)} if prompt.tools else {})


def render_here(
    tokenizer: TokenizerWrapper,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """What a tokenizer's chat template makes of messages, with the beginning of an answer. Raises TemplateFailed."""
    try:
        text: str = tokenizer.apply_chat_template(
            messages, **{**variables, "tokenize": False, "add_generation_prompt": True}
        )
    except Exception as error:  # the template is a program that comes with the model
        raise TemplateFailed(str(error) or type(error).__name__) from error
    return text


def _encoded(tokenizer: TokenizerWrapper, text: str, field: str, *, add_special_tokens: bool) -> tuple[int, ...]:
    try:
        return tuple(tokenizer.encode(text, add_special_tokens=add_special_tokens))
    except Exception as error:  # its rules come with the model, and the library raises bare Exception
        raise BadRequest(
            f"the model's tokenizer cannot encode this text: {_in_one_line(error)}", param=field
        ) from error


def _vocabulary_size(config: dict[str, Any], tokenizer: TokenizerWrapper) -> int:
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return len(tokenizer)


def _in_one_line(error: Exception, limit: int = 300) -> str:
    return in_one_line(str(error), limit) or type(error).__name__
