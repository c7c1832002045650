"""What a request says to the model's chat template beside its messages: how it is to think, and variables of its own."""

import re
from typing import Any

from cluster.api.fields import Check, Notes, check_all, flag, hint, mapping, mapping_of, refuse, text
from cluster.api.schemas import described

_NAME = re.compile("^[A-Za-z_][A-Za-z0-9_]{0,63}$")
# Variables that say how a template is run, not what it makes.
_NOT_THE_TEMPLATE_S = frozenset({
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length", "messages",
    "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens", "tokenize",
    "tokenizer_kwargs", "tools", "truncation",
})  # fmt: skip


@described(
    {
        "type": "object",
        "propertyNames": {"pattern": _NAME.pattern, "not": {"enum": sorted(_NOT_THE_TEMPLATE_S)}},
        "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
    }
)
def template_variables(name: str, value: Any) -> dict[str, Any]:
    """Variables for the chat template: plain values, none of them one that says how it is run."""
    options = mapping(name, value)
    for key, item in options.items():
        if not _NAME.fullmatch(key) or key in _NOT_THE_TEMPLATE_S:
            raise refuse(f"{name}.{key[:64]}", "a variable of the model's chat template", key)
        if type(item) not in (str, int, float, bool, type(None)):
            raise refuse(f"{name}.{key}", "a plain value", item)
    return options


_REASONING: dict[str, Check] = {"effort": text(1, 32), "enabled": flag, "summary": hint(), "exclude": hint(False)}

TEMPLATE_FIELDS: dict[str, Check] = {
    "chat_template_kwargs": template_variables,
    "enable_thinking": flag,
    "reasoning_effort": text(1, 32),
    "reasoning": mapping_of(_REASONING),
}


def template_options(fields: dict[str, Any], notes: Notes) -> dict[str, Any]:
    """What the chat template is told of thinking, by whichever of their names, and whatever else is for it."""
    reasoning = check_all(fields.get("reasoning", {}), _REASONING, notes, "reasoning.")
    effort = fields.get("reasoning_effort", reasoning.get("effort"))
    thinks = fields.get("enable_thinking", reasoning.get("enabled"))
    if effort == "none":
        effort, thinks = None, False
    said = {"reasoning_effort": effort, "enable_thinking": thinks}
    return {name: value for name, value in said.items() if value is not None} | fields.get("chat_template_kwargs", {})
