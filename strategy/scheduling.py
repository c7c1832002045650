"""What the head of a route runs next: prefill chunks, decode steps and whole-sequence steps, taken in turn.

The policy, which the tests state one by one:

1. A prompt's tokens but the last are prefilled in chunks, without sampling; the last one is the first decode step. So
   a chunk never waits for a token, and chunks of one prompt follow each other through the stages. A sequence that only reads
   ends there, or behind a last chunk that has its last token too. Behind the last chunk of one prompt others that are due soon are
   read in the same step, whose last chunks are about as long (`joins`).
2. Cached sequences decode in *slots*, batches that share one merged cache. There are as many slots as stages where there
   are that many sequences, so that every stage has a batch to work on; a newcomer joins the smallest slot, and a slot
   that has two sequences more than another gives one of them away. A merged cache is as long for all as for the longest,
   and this padding is paid for in memory and attention: so a sequence joins only others of about its length. One that
   finds none opens a slot; while there are more slots than stages, two that go together become one.
3. Between two prefill chunks every slot that is ready decodes once, so a long prompt delays a token by at most the
   chunks already in flight. Prompts take turns chunk by chunk, so a short prompt is not stuck behind a long one; clients
   take turns first, so one prompt is not stuck behind the many of somebody else.
4. Uncached sequences take turns among themselves, a step each, clients first, and take turns with the cached ones.
5. At most as many steps are in flight as there are stages and slots together: behind the decode steps that wait for a
   chunk on a later stage, the first stage goes on with the next chunk. More would only queue in front of a stage.
6. On a route of one stage a slot *runs ahead*: its next step is issued while the ids of the last are still being
   computed, as long as the same sequences take part and none needs the ids first. So the device never waits for the
   host; the step of a sequence that turns out to have ended is thrown away.

7. Where few enough decode (`may_guess`) what comes behind the known tokens of a sequence is guessed before its step, which samples
   at all of those places: it waits for the ids before it. Of guesses that were wrong nothing counts as computed; where caches
   cannot forget them, what lies behind the step's beginning is computed again, in front of the next ones. Without a cache
   everything is, and any sequence may be guessed for.
   Where nothing else is to do the first stage *goes on*: while guesses are being verified, it guesses what comes behind them, and a
   step of such guesses alone follows. Where one before it turns out wrong it is *stale*, which the last stage finds out too; it comes
   back with nothing.
8. A client none of whose sequences decodes yet waits for one decode step of others, not for one of every slot, and its
   first token has the next turn, in a slot of its own where the others are at work.

Knows counts of tokens only: no token ids, no clock, no sockets.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from strategy.client_turns import ClientTurns
from strategy.drafting import may_guess
from strategy.step_plan import Chunks, Guesses, RowPlan, StepPlan

# Of a slot's own tokens, how many its padding may be; so many are always allowed.
PADDING_SHARE = 0.25
PADDING_TOKENS = 1024
# How many of the prompts whose turn is next are looked at for one that is read with the next.
LOOK_AHEAD = 64


@dataclass
class _Sequence:
    client: str
    cached: bool
    known: int  # tokens so far, prompt and answer
    reused: int  # tokens that were in the caches from the start
    computed: int  # tokens whose step was issued
    steps: list[StepPlan] = field(default_factory=list)  # in flight, but for stale ones
    coming: int = 0  # tokens that those will add
    runs_ahead: bool = False
    reads_only: int | None = None
    reads_alone: bool = False

    @property
    def num_due(self) -> int:
        """Tokens that a step which samples computes: of those that are known then."""
        return self.known + self.coming - self.computed

    @property
    def num_to_read(self) -> int:
        """Tokens that chunks read."""
        return self.known - 1 if self.reads_only is None else self.reads_only

    @property
    def num_left(self) -> int:
        """Of those, how many no chunk was issued for."""
        return self.num_to_read - self.computed


@dataclass
class _Slot:
    members: list[int] = field(default_factory=list)
    in_flight: int = 0
    last_members: list[int] = field(default_factory=list)
    is_guessed: bool = False  # the step in flight


@dataclass
class _Turn:
    """slots: in the order of their next turn; of_cached: sequences with a cache are next; decodes_since_chunk: steps of slots since a prompt
    had its turn.
    """

    slots: deque[int] = field(default_factory=deque)
    of_cached: bool = True
    decodes_since_chunk: int = 0


class Schedule:
    """The sequences of one route on its head."""

    def __init__(self, *, num_stages: int, chunks: Chunks, max_rows: int, guesses: Guesses | None = None):
        """max_rows: sequences in a step at most; 1 for architectures whose caches cannot be batched."""
        self._num_stages = num_stages
        self._chunks = chunks
        self._max_rows = max_rows
        self._guesses = guesses
        self._sequences: dict[int, _Sequence] = {}
        self._prefilling: ClientTurns[int] = ClientTurns()
        self._uncached: ClientTurns[int] = ClientTurns()  # those that are not in flight
        self._decoding: Counter[str] = Counter()  # sequences in slots, by client
        self._slots: dict[int, _Slot] = {}
        self._turn = _Turn()
        self._stale: list[StepPlan] = []  # in flight
        self.num_in_flight = 0

    def __repr__(self) -> str:
        return f"Schedule({len(self._sequences)} sequences, {self.num_in_flight} in flight)"

    def __len__(self) -> int:
        return len(self._sequences)

    def add(
        self,
        sequence: int,
        *,
        prompt_tokens: int,
        cached: bool,
        client: str = "",
        computed_tokens: int = 0,
        runs_ahead: bool = False,
        reads_only: int | None = None,
    ) -> None:
        """A sequence begins; `computed_tokens` of its prompt are already in the caches.

        client: whose it is. runs_ahead: sampling its next token needs no id of the one before on the host. reads_only:
        nothing is sampled, so many of its tokens are read, and it is there until it is removed.
        """
        assert sequence not in self._sequences
        assert 0 <= computed_tokens < prompt_tokens
        runs_ahead = runs_ahead and self._num_stages == 1
        self._sequences[sequence] = _Sequence(
            client,
            cached,
            prompt_tokens,
            computed_tokens,
            computed_tokens,
            runs_ahead=runs_ahead,
            reads_only=reads_only,
            reads_alone=reads_only is not None,
        )
        if not cached:
            self._uncached.add(client, sequence)
        elif computed_tokens < self._sequences[sequence].num_to_read:
            self._prefilling.add(client, sequence)
        elif reads_only is None:
            self._enter_slot(sequence)

    def read_alone(self, sequence: int) -> None:
        """No other prompt is read in the steps of a sequence."""
        self._sequences[sequence].reads_alone = True

    def remove(self, sequence: int) -> int:
        """A sequence ended or was cancelled; steps of it that are in flight still count until they are done.

        Returns how many of its tokens were given to a step.
        """
        state = self._sequences.pop(sequence)
        for queue in (self._prefilling, self._uncached):
            queue.remove(state.client, sequence)
        for number, slot in list(self._slots.items()):
            if sequence in slot.members:
                slot.members.remove(sequence)
                self._decoding[state.client] -= 1
                if not slot.members and not slot.in_flight:
                    self._drop_slot(number)
        self._decoding += Counter()  # without those that have none
        return state.computed

    def next(self) -> StepPlan | None:
        """The next step, counted as in flight; None when nothing is ready or enough is in flight."""
        if self.num_in_flight >= self._num_stages + max(len(self._slots), 1):
            return None
        kinds = (self._next_cached, self._next_uncached)
        for kind in (*(kinds if self._turn.of_cached else reversed(kinds)), self._go_on):
            if step := kind():
                self._turn.of_cached = not step.cached
                self.num_in_flight += 1
                for row in step.rows:
                    state = self._sequences[row.sequence]
                    state.computed = row.start + row.count
                    state.steps.append(step)
                    state.coming += row.num_sampled
                return step
        return None

    def is_stale(self, step: StepPlan) -> bool:
        """Whether a step in flight goes on behind guesses that were wrong."""
        return any(step is other for other in self._stale)

    def done(self, step: StepPlan, found: Sequence[int] | None = None, *, is_kept: bool = True) -> None:
        """A step came back from the last stage. found: how many tokens each row has more; None for one where it was sampled.
        is_kept: what goes on behind it begins with the token that it sampled last; otherwise that is stale.
        """
        self.num_in_flight -= 1
        if self.is_stale(step):
            self._stale = [other for other in self._stale if other is not step]
            return
        for row, count in zip(step.rows, found or [min(row.num_sampled, 1) for row in step.rows], strict=True):
            state = self._sequences.get(row.sequence)
            if state is not None:
                state.steps.remove(step)
                state.coming -= row.num_sampled
                state.known += count
                if count < row.num_sampled or not is_kept:
                    self._break(state, row, count)
                if not step.cached and state.reads_only is None:
                    self._uncached.add(state.client, row.sequence)
        if step.slot is not None:
            slot = self._slots[step.slot]
            slot.in_flight -= 1
            if not slot.members and not slot.in_flight:
                self._drop_slot(step.slot)

    def _break(self, state: _Sequence, row: RowPlan, count: int) -> None:
        """Of what a row sampled only so many tokens count, and nothing of what was guessed behind."""
        is_cut = self._guesses is not None and self._guesses.forgets
        state.computed = row.start + (row.count - row.num_sampled + count if is_cut else 0)
        for step in state.steps:
            assert step.slot is not None, "a sequence goes on in its slot"
            self._slots[step.slot].in_flight -= 1
        self._stale += state.steps
        state.steps, state.coming = [], 0

    # --- cached

    def _next_cached(self) -> StepPlan | None:
        self._balance()
        ready = [number for number in self._turn.slots if self._is_ready(self._slots[number])]
        if ready and not (self._prefilling and self._turn.decodes_since_chunk >= self._decodes_before_chunk()):
            self._turn.decodes_since_chunk += 1
            return self._decode(ready[0])
        if self._prefilling:
            self._turn.decodes_since_chunk = 0
            return self._chunk(self._prefilling.pop())
        return None

    def _decodes_before_chunk(self) -> int:
        """How many decode steps lie between two chunks, where the next one is of this client."""
        return len(self._slots) if self._decoding[self._prefilling.next_client] else min(1, len(self._slots))

    def _is_ready(self, slot: _Slot) -> bool:
        if slot.in_flight == 1 and slot.members == slot.last_members and not slot.is_guessed:
            return all(self._sequences[member].runs_ahead for member in slot.members) and not self._is_to_guess(slot)
        return not slot.in_flight

    def _is_to_guess(self, slot: _Slot) -> bool:
        if self._guesses is None or len(slot.members) > 1 or not may_guess(self._decoding.total(), self._num_stages):
            return False
        (member,) = slot.members
        return self._guesses.is_due(member, self._sequences[member].num_due)

    def _decode(self, number: int) -> StepPlan:
        slot = self._slots[number]
        behind = [member for member in slot.members if self._sequences[member].num_due > 1]
        if behind and len(slot.members) > 1:  # rows of a batch have one token each
            return self._without_sampling({behind[0]: self._sequences[behind[0]].num_due - 1})
        guesses = self._guessed(slot.members[0]) if self._is_to_guess(slot) else 0
        slot.is_guessed = guesses > 0
        slot.in_flight += 1
        slot.last_members = list(slot.members)
        self._turn.slots.remove(number)
        self._turn.slots.append(number)
        rows = []
        for member in slot.members:
            state = self._sequences[member]
            rows.append(RowPlan(member, state.computed, state.num_due + guesses, num_sampled=1 + guesses))
        return StepPlan(number, cached=True, rows=tuple(rows))

    def _guessed(self, sequence: int) -> int:
        assert self._guesses is not None
        return self._guesses.guess(sequence, self._sequences[sequence].num_due)

    def _go_on(self) -> StepPlan | None:
        """A step of guesses behind those that are on their way: so many that every stage has one to work on."""
        if self._guesses is None or not self._guesses.forgets or self.num_in_flight >= self._num_stages:
            return None
        if not may_guess(self._decoding.total(), self._num_stages):
            return None
        for number in self._turn.slots:
            slot = self._slots[number]
            if slot.in_flight and slot.is_guessed and len(slot.members) == 1 and slot.members == slot.last_members:
                (member,) = slot.members
                if count := self._guesses.go_on(member):
                    slot.in_flight += 1
                    row = RowPlan(member, self._sequences[member].computed, count, num_sampled=count)
                    return StepPlan(number, cached=True, rows=(row,))
        return None

    def _chunk(self, sequence: int) -> StepPlan:
        state = self._sequences[sequence]
        num_decoding = len(self._slots) + any(not each.cached for each in self._sequences.values())
        num_tokens = state.known - state.reused
        size = self._chunks.tokens(num_tokens, state.computed, num_decoding=num_decoding, num_left=state.num_left)
        if size < state.num_left:
            self._prefilling.add(state.client, sequence)
            return self._without_sampling({sequence: size})
        together = self._read_with(sequence, num_decoding)
        if state.reads_only is None:
            for each in together:
                self._enter_slot(each)
        return self._without_sampling({each: self._sequences[each].num_left for each in together})

    def _read_with(self, sequence: int, num_decoding: int) -> list[int]:
        """A prompt of which one step reads all that is left, and others of which it does so too; these had their turn then."""
        together = [sequence]
        may_share = not self._sequences[sequence].reads_alone
        for client, other in list(islice(self._prefilling.in_turn(), LOOK_AHEAD if may_share else 0)):
            state, counts = self._sequences[other], [self._sequences[each].num_left for each in together]
            fits = not state.reads_alone and self._fit([*together, other])
            if fits and self._chunks.joins(counts, state.num_left, num_decoding=num_decoding):
                together.append(other)
                self._prefilling.take(client, other)
        return together

    def _without_sampling(self, counts: Mapping[int, int]) -> StepPlan:
        """Of some sequences the next so many tokens."""
        rows = (RowPlan(each, self._sequences[each].computed, count, num_sampled=0) for each, count in counts.items())
        return StepPlan(None, cached=True, rows=tuple(rows))

    def _enter_slot(self, sequence: int) -> None:
        """Join the smallest slot of sequences about as long; open one where there are fewer than stages, or none fits.

        A client's only one does not wait for others to come back, unless many such are there.
        """
        client = self._sequences[sequence].client
        is_first = not self._decoding[client] and bool(self._decoding)
        self._decoding[client] += 1
        most = 2 * self._num_stages if is_first else self._num_stages
        slot = self._smallest_for([sequence]) if len(self._slots) >= most else None
        (slot or self._open_slot(first=is_first)).members.append(sequence)

    def _open_slot(self, *, first: bool = False) -> _Slot:
        """first: its turn is the next one."""
        number = next(n for n in range(len(self._slots) + 1) if n not in self._slots)
        if first:
            self._turn.slots.appendleft(number)
        else:
            self._turn.slots.append(number)
        return self._slots.setdefault(number, _Slot())

    def _smallest_for(self, newcomers: list[int], *, but: _Slot | None = None) -> _Slot | None:
        fitting = [slot for slot in self._slots.values() if slot is not but and self._fit(slot.members + newcomers)]
        return min(fitting, key=lambda slot: len(slot.members), default=None)

    def _fit(self, members: list[int]) -> bool:
        """Whether these may share a slot."""
        lengths = [self._sequences[member].known for member in members]
        padding = max(lengths) * len(lengths) - sum(lengths)
        return len(members) <= self._max_rows and padding <= PADDING_SHARE * sum(lengths) + PADDING_TOKENS

    def _balance(self) -> None:
        """Even out the slots, by what is at rest: dissolve one too many, or move a sequence from the largest."""
        at_rest = [(number, slot) for number, slot in self._slots.items() if slot.members and not slot.in_flight]
        if not at_rest or self._max_rows == 1:
            return
        if len(self._slots) > self._num_stages:
            for number, slot in at_rest:
                if other := self._smallest_for(slot.members, but=slot):
                    other.members += slot.members
                    self._drop_slot(number)
                    return
        _, largest = max(at_rest, key=lambda item: len(item[1].members))
        if len(self._slots) < self._num_stages:
            smallest = self._open_slot() if len(largest.members) >= 2 else None
        else:
            smallest = self._smallest_for(largest.members[-1:], but=largest)
        if smallest is not None and len(largest.members) >= len(smallest.members) + 2:
            smallest.members.append(largest.members.pop())

    def _drop_slot(self, number: int) -> None:
        del self._slots[number]
        self._turn.slots.remove(number)

    # --- uncached

    def _next_uncached(self) -> StepPlan | None:
        if not self._uncached:
            return None
        sequence = self._uncached.pop()
        state = self._sequences[sequence]
        is_to_guess = self._guesses is not None and self._guesses.is_due(sequence, 1)
        guesses = self._guesses.guess(sequence, 1) if self._guesses is not None and is_to_guess else 0
        num_sampled = 0 if state.reads_only is not None else 1 + guesses
        row = RowPlan(sequence, 0, state.known + guesses, num_sampled=num_sampled)
        return StepPlan(None, cached=False, rows=(row,))
