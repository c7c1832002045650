"""The model that a cluster serves: where it lies, its names, what was found out about it, how fast workers run it, and plans made of
that.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from cluster.membership.member import Member
from cluster.membership.roster import Roster
from cluster.planning.assembly import Assembly, Part
from cluster.planning.candidate import Candidate
from cluster.planning.draft_files import NO_DRAFT, ChosenDraft
from cluster.planning.model_files import read_sizes
from cluster.planning.plan import ModelFacts
from cluster.planning.route_costs import hop_between
from cluster.settings import Settings
from protocol.messages import Inspected, InspectModel, Loaded, PrepareStage
from protocol.model_search import model_name
from protocol.values import LayerRange, Peer, Route
from strategy.grouping import group_sizes
from strategy.layer_speeds import LayerSpeeds
from strategy.measured_partition import Pace
from strategy.memory import room_for, sequence_bytes
from strategy.partition import GroupSizes, ModelSizes, NoPlan, Partition


class KnownModel:
    """path: its directory here; digest: its name between processes; draft: who guesses. facts: None until it was inspected."""

    def __init__(self, path: Path, digest: str, settings: Settings, draft: ChosenDraft = NO_DRAFT):
        self.path = path
        self._settings = settings
        self.digest = digest
        self._draft = draft
        self.facts: ModelFacts | None = None
        self._speeds: dict[str, LayerSpeeds] = {}
        self._payload_bytes = 0  # of one token

    def __repr__(self) -> str:
        return f"KnownModel({self.path.name})"

    def inspected(self, found: Inspected) -> ModelFacts:
        """A worker inspected it. Raises ModelError for damaged files."""
        sizes = self._with_groups(self._with_caches(read_sizes(self.path, found.num_layers), found), found)
        self.facts = ModelFacts(
            id=model_name(self.path),
            digest=self.digest,
            sizes=sizes,
            inspected=found,
            guessing=self._draft.guessing,
            draft=self._draft.name,
            draft_bytes=self._draft.num_bytes,
        )
        return self.facts

    def _with_caches(self, sizes: ModelSizes, found: Inspected) -> ModelSizes:
        """With what the weights have to leave free for caches, where that was asked for and is known."""
        plan, cache = self._settings.plan, self._settings.cache
        if not plan.is_asked or len(found.caches) != found.num_layers:
            return sizes
        requests, asked = plan.tokens
        tokens = min(asked, found.context_tokens or asked)
        caches = [
            room_for(sequence_bytes(needs, tokens) * requests, prefix_limit=cache.memory_limit, prefix=cache.prefix)
            for needs in found.caches
        ]
        several = f"{requests} requests of {tokens} tokens each" if requests > 1 else f"a request of {tokens} tokens"
        return msgspec.structs.replace(sizes, caches=tuple(caches), caches_of=several)

    def _with_groups(self, sizes: ModelSizes, found: Inspected) -> ModelSizes:
        """With what the workers of each group need for it, as far as the model can be cut so."""
        cuts = {cut.ranks: cut for cut in found.rank_cuts}
        groups: list[GroupSizes] = []
        refused: list[str] = []
        for group in self._settings.groups:
            cut = cuts[group.num_ranks]
            try:
                if cut.why_not is not None:
                    raise NoPlan(f"the model cannot be computed by {cut.ranks} together: {cut.why_not}")
                route = Route(group.workers, group.num_ranks)
                groups.append(group_sizes(sizes, route, cut.shares, found.legal_cuts, why_not=found.why_not))
            except NoPlan as error:
                refused.append(str(error))
        return msgspec.structs.replace(sizes, groups=tuple(groups), why_no_group=next(iter(refused), None))

    def to_inspect(self, reply_to: Peer, sources: tuple[Peer, ...]) -> InspectModel:
        """What asks a worker to inspect it. reply_to, sources: as in the message."""
        kv = self._settings.kv_cache.kv if self._settings.plan.is_asked else None
        ranks = self._settings.group_ranks
        return InspectModel(model=self.digest, reply_to=reply_to, sources=sources, kv=kv, ranks=ranks)

    def to_prepare(self, layers: LayerRange, reply_to: Peer, sources: tuple[Peer, ...]) -> PrepareStage:
        """What asks a worker to read layers of it in advance. reply_to, sources: as in the message."""
        return PrepareStage(model=self.digest, layers=layers, reply_to=reply_to, sources=sources)

    def assemble(self, epoch: int, found: Partition, parts: Mapping[str, Part]) -> Assembly:
        """A plan of this model on its way. Only once it was inspected."""
        assert self.facts is not None
        return Assembly(epoch, self.facts, found, parts, self._settings)

    def learn(self, message: Loaded) -> None:
        """A worker loaded its part, and may have measured how fast it runs it."""
        if message.layers is not None:
            self._speeds[message.worker] = message.layers
        for prefix in message.prefixes:
            if prefix.speed is not None:
                self._payload_bytes = max(self._payload_bytes, prefix.speed.payload_bytes)

    def candidates(self, roster: Roster, now: float) -> dict[str, Candidate]:
        """The workers that are there, in the order of the roster."""
        there = list(roster.there)
        return {
            member.name: Candidate.of(
                member, roster.deaths(member.name, now), self._pace(member, there), taken_bytes=self._draft.num_bytes
            )
            for member in there
        }

    def _pace(self, member: Member, there: Sequence[Member]) -> Pace | None:
        speeds = self._speeds.get(member.name)
        if speeds is None:
            return None
        return Pace(
            speeds=speeds,
            slowness=1.0 if member.heartbeat is None else member.heartbeat.slowness,
            hops={other.name: hop_between(member, other) for other in there if other is not member},
            payload_bytes=self._payload_bytes,
        )
