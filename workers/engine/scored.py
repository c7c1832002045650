"""What a head makes of the log probabilities that come back with a step: whether they are those that it asked for, and reports."""

from collections.abc import Mapping, Sequence

from protocol.messages import PromptLogprobs, Sampled
from strategy.step_plan import RowPlan
from workers.engine.actions import Report
from workers.engine.generation import Generation

_Generations = Mapping[int, Generation]


def misfit_of(
    answer: Sampled, rows: Sequence[RowPlan], generations: _Generations, *, is_stale: bool = False
) -> str | None:
    """What is wrong with the last stage's answer to a step of these rows, in words that follow its name; None when it fits.

    is_stale: the step goes on behind wrong guesses, so that nothing was to be sampled. Whether one does whose sequence is gone is not known.
    """
    sampling = [row for row in rows if row.num_sampled]
    if len(answer.tokens) != len(sampling):
        return f"sampled for {len(answer.tokens)} sequences where {len(sampling)} were asked for"
    for row, found in zip(sampling, answer.tokens, strict=True):
        most = 0 if is_stale else row.num_sampled
        least = min(most, 1) if row.sequence in generations else 0
        if not least <= len(found) <= most:
            return f"sampled {len(found)} tokens where {most} were asked for"
    wanting = [generations.get(row.sequence) for row, found in zip(sampling, answer.tokens, strict=True) for _ in found]
    told = answer.logprobs or (None,) * len(wanting)
    if any(each and each.tells_logprobs and logprobs is None for each, logprobs in zip(wanting, told, strict=True)):
        return "did not tell the log probabilities of what it sampled"
    scored = answer.scored or ((),) * len(rows)
    if len(scored) != len(rows):
        return f"told log probabilities of {len(scored)} prompts in a step of {len(rows)} sequences"
    for row, entries in zip(rows, scored, strict=True):
        generation = generations.get(row.sequence)
        if generation is not None and len(entries) != _num_scored(row, generation):
            return (
                f"told log probabilities of {len(entries)} tokens where {_num_scored(row, generation)} were asked for"
            )
    return None


def prompts_scored(answer: Sampled, rows: Sequence[RowPlan], generations: _Generations) -> list[Report]:
    """For the coordinator, of an answer that fits."""
    return [
        Report(PromptLogprobs(sequence=generation.request.sequence, start=max(row.start, 1), entries=entries))
        for row, entries in zip(rows, answer.scored, strict=bool(answer.scored))
        if entries and (generation := generations.get(row.sequence)) is not None
    ]


def _num_scored(row: RowPlan, generation: Generation) -> int:
    """Of how many of a row's tokens log probabilities are told: of those of a prompt, but for its first."""
    return row.count - (row.start == 0) if generation.tells_prompt else 0
