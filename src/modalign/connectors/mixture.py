"""Alt-MoE: a mixture of experts maps one modality into another's own feature space.

    z_a (+ E_a) --projection--> z^c (+ E_task) --shared mixture of experts--> --head--> R^{D_b}

A direction a -> b has its own projection, embeddings and heads; experts and gate are shared by
all directions. What is searched are the target's raw features, as its encoder gave them.

Source: Alt-MoE, 2024, arXiv:2409.05929; M3-JEPA, ICML 2025, where that is silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modalign.connectors.dropout import Dropout
from modalign.connectors.standardization import Standardization
from modalign.connectors.universal_projection import masked_mean
from modalign.errors import UsageError, check_known

Direction = tuple[str, str]
Task = Literal["prediction", "contrast"]

TASKS: tuple[Task, ...] = ("prediction", "contrast")
EMBEDDING_PLACES = ("input", "common", "both")
# Routers whose experts belong to modalities: a new modality needs experts of its own.
BY_MODALITY = ("fixed-modality", "grouped")


@dataclass(frozen=True)
class MixtureShape:
    """Sizes and choices that all directions share.

    Attributes:
        width: d, of the common space the experts work in.
        experts: E; where `router` is "mlp", one expert as large as all of them.
        top_k: Experts a row passes through, <= experts; of a group at most all.
        router: "learned" gate; experts of a modality or of a task ("fixed-..."), all with equal
            weight; "grouped": a gate among the experts of the source's modality; "dense": a gate
            over all experts, none left out; "mlp": the mixture's twin without experts.
        renormalise: Let the chosen weights sum to 1.
        noise: Standard deviation of what is added to the gate's logits in training.
        dropout: Share dropped inside an expert.
        feature_dropout: Share of the standardised features dropped.
        modality_embedding: Where E_a is added: "input" (width D_a), "common" (d), "both".
        share_experts: One mixture for all directions, else one each.
        per_token: Map each position of a token sequence and take the mean of the mixture's
            outputs, else take the mean of the features first.
    """

    width: int = 512
    experts: int = 8
    top_k: int = 2
    router: str = "learned"
    renormalise: bool = False
    noise: float = 0.0
    dropout: float = 0.1
    feature_dropout: float = 0.0
    modality_embedding: str = "input"
    share_experts: bool = True
    per_token: bool = False


@dataclass(frozen=True)
class Routing:
    """Where a mixture sent its rows.

    Attributes:
        shares: Softmax of the gate, float [N, E]; equal shares where experts are fixed.
        chosen: Experts each row passed through, int64 [N, k].
    """

    shares: Tensor
    chosen: Tensor


class Expert(nn.Module):
    """Linear, GELU, Dropout, Linear.

    Args:
        width: d.
        hidden: Of the inner layer; d in the paper.
        dropout: Share dropped between the two.
    """

    def __init__(self, width: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map float [n, d] to float [n, d]."""
        mapped: Tensor = self.outer(self.dropout(F.gelu(self.inner(x))))
        return mapped


class Mixture(nn.Module):
    """Experts, their gate, and the norms of the tasks: GELU(LayerNorm_task(experts(x))) + x.

    Rows choose experts by themselves: what a row becomes never depends on its batch.

    Source: arXiv:2409.05929, section 3; token choice of Shazeer et al. 2017, arXiv:1701.06538.

    Args:
        shape: Sizes and choices.
        groups: What experts are shared out among where the router is fixed or grouped: names of
            modalities, or of tasks; experts of a group lie side by side.
        inherited: Experts of an earlier stage that come first, frozen, and are not part of
            this module's state.
    """

    def __init__(
        self,
        shape: MixtureShape,
        *,
        groups: Sequence[str],
        inherited: Mixture | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        count, hidden = expert_sizes(shape)
        self.experts = nn.ModuleList(
            Expert(shape.width, hidden, dropout=shape.dropout) for _ in range(count)
        )
        # In a list of its own a module is no part of the state.
        self._inherited = [] if inherited is None else [inherited]
        # However many stages ago a group came, its experts stay its own.
        self.groups: dict[str, range] = {} if inherited is None else dict(inherited.groups)
        self.groups |= {name: self._group(groups, place) for place, name in enumerate(groups)}
        self.norms = nn.ModuleDict({task: nn.LayerNorm(shape.width) for task in TASKS})
        gated = shape.router in ("learned", "grouped", "dense")
        total = len(self.all_experts())
        self.gate = nn.Linear(shape.width, total) if gated else None
        if shape.router == "learned" and shape.top_k > total:
            raise UsageError(
                f"top_k is {shape.top_k}, expected at most the number of experts, {total}; "
                "change one"
            )

    def _group(self, groups: Sequence[str], place: int) -> range:
        own = len(self.experts)
        first = len(self.all_experts()) - own
        if own < len(groups):
            raise UsageError(
                f"router {self.shape.router}: {own} experts for {len(groups)} groups "
                f"({', '.join(groups)}), expected one each at least; raise experts"
            )
        if self.shape.router == "fixed-skill" and own % len(groups):
            # Rows of both tasks go through together, each through as many experts.
            raise UsageError(
                f"router fixed-skill: {own} experts for {len(groups)} tasks "
                f"({', '.join(groups)}), expected a multiple of {len(groups)}; change experts"
            )
        size = own / len(groups)
        return range(first + round(place * size), first + round((place + 1) * size))

    def all_experts(self) -> list[Expert]:
        """Return the experts a row may pass through, inherited ones first."""
        inherited = [expert for mixture in self._inherited for expert in mixture.all_experts()]
        return [*inherited, *self.experts]

    def forward(
        self, x: Tensor, tasks: Sequence[tuple[Task, int]], group: str
    ) -> tuple[Tensor, Routing]:
        """Mix.

        Args:
            x: float [N, d]: rows of one task after the other.
            tasks: Each task and how many rows it has.
            group: The source's modality.

        Returns:
            float [N, d], and where the rows went.
        """
        routing = self.route(x, tasks, group)
        parts = torch.split(self.combine(x, routing), [count for _, count in tasks])
        normed = [self.norms[name](part) for (name, _), part in zip(tasks, parts, strict=True)]
        return F.gelu(torch.cat(normed)) + x, routing

    def route(self, x: Tensor, tasks: Sequence[tuple[Task, int]], group: str) -> Routing:
        """Choose the experts of each row; see `forward`."""
        total = len(self.all_experts())
        if self.gate is None:
            return self._fixed(x, tasks, group, total)
        logits = self.gate(x)
        if self.training and self.shape.noise:
            logits = logits + self.shape.noise * torch.randn_like(logits)
        if self.shape.router == "grouped":
            outside = torch.ones(total, dtype=torch.bool, device=x.device)
            outside[self._members(group)] = False
            logits = logits.masked_fill(outside, -torch.inf)
        # In float32: weights in bfloat16 would round what they weigh.
        shares = logits.float().softmax(-1)
        count = total if self.shape.router == "dense" else self.shape.top_k
        if self.shape.router == "grouped":
            count = min(count, len(self._members(group)))
        return Routing(shares, shares.topk(count, dim=-1).indices)

    def _fixed(
        self, x: Tensor, tasks: Sequence[tuple[Task, int]], group: str, total: int
    ) -> Routing:
        """Send every row to all experts of its group, with equal shares."""
        shares = x.new_zeros(len(x), total)
        chosen = []
        row = 0
        for name, count in tasks:
            members = self.open_to(name, group)
            shares[row : row + count, members] = 1 / len(members)
            chosen.append(torch.tensor(members, device=x.device).expand(count, -1))
            row += count
        return Routing(shares, torch.cat(chosen))

    def open_to(self, task: Task, group: str) -> list[int]:
        """Return the experts that rows of a task and of a source's modality may choose from."""
        if self.shape.router in ("learned", "dense"):
            return list(range(len(self.all_experts())))
        return self._members({"fixed-skill": task, "mlp": "all"}.get(self.shape.router, group))

    def _members(self, group: str) -> list[int]:
        return list(self.groups[group])

    def combine(self, x: Tensor, routing: Routing) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs, float [N, d]."""
        weights = routing.shares.gather(1, routing.chosen)
        if self.shape.renormalise:
            weights = weights / weights.sum(1, keepdim=True)
        # What needs a gradient is training; all else shall not depend on its neighbours.
        combine = self._grouped if torch.is_grad_enabled() else self._whole
        return combine(x, routing.chosen, weights)

    def _grouped(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Run each expert on its own rows alone: what training can afford."""
        order = chosen.flatten().argsort(stable=True)
        rows = order // chosen.shape[1]
        experts = self.all_experts()
        counts = torch.bincount(chosen.flatten(), minlength=len(experts)).tolist()
        parts = [
            expert(part)
            for expert, part in zip(experts, torch.split(x[rows], counts), strict=True)
            if len(part)
        ]
        weighted = torch.cat(parts) * weights.flatten()[order].unsqueeze(1)
        return torch.zeros_like(x).index_add(0, rows, weighted)

    def _whole(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Run each expert that a row needs on all rows: no row's bits depend on the others'.

        A matrix product rounds a row differently in another shape of batch, and how many rows
        choose an expert is the others' doing.
        """
        experts = self.all_experts()
        mixed = torch.zeros_like(x)
        for index in torch.unique(chosen).tolist():
            here = chosen == index
            weight = (weights * here).sum(1, keepdim=True)
            added = mixed + weight * experts[index](x)
            mixed = torch.where(here.any(1, keepdim=True), added, mixed)
        return mixed


def expert_sizes(shape: MixtureShape) -> tuple[int, int]:
    """Return how many experts there are, and the width inside one.

    The twin without experts has as many parameters as all of them and the gate together, but
    for what is lost by rounding.
    """
    if shape.router != "mlp":
        return shape.experts, shape.width
    width, experts = shape.width, shape.experts
    wanted = experts * (2 * width * width + 2 * width) + experts * (width + 1)
    return 1, round((wanted - width) / (2 * width + 1))


class DirectedMap(nn.Module):
    """What one direction has for itself: embeddings, projection, heads.

    Source: arXiv:2409.05929, equations 7 to 10. Differs: features are standardised first, with
    the figures of the training split (`Standardization`), where `fit` was called.

    Args:
        source_width: D_a.
        target_width: D_b.
        shape: Sizes and choices.
    """

    def __init__(self, source_width: int, target_width: int, shape: MixtureShape) -> None:
        super().__init__()
        check_known(shape.modality_embedding, EMBEDDING_PLACES, what="modality_embedding")
        places = {"input": source_width, "common": shape.width}
        used = [p for p in places if shape.modality_embedding in (p, "both")]
        self.standardization = Standardization(source_width)
        self.feature_dropout = Dropout(shape.feature_dropout)
        self.modality = nn.ParameterDict({p: small_start(places[p]) for p in used})
        self.projection = nn.Linear(source_width, shape.width)
        self.tasks = nn.ParameterDict({task: small_start(shape.width) for task in TASKS})
        self.heads = nn.ModuleDict({task: nn.Linear(shape.width, target_width) for task in TASKS})

    def enter(self, features: Tensor) -> Tensor:
        """Bring features, float [N, D_a], to the common width, float [N, d]."""
        x = self.feature_dropout(self.standardization(features))
        if "input" in self.modality:
            x = x + self.modality["input"]
        common: Tensor = self.projection(x)
        return common + self.modality["common"] if "common" in self.modality else common


def small_start(width: int) -> nn.Parameter:
    """Return an embedding that begins near zero."""
    return nn.Parameter(0.02 * torch.randn(width))


class MixtureStage(nn.Module):
    """What a stage trains: its directions, and the mixtures they pass through.

    Args:
        feature_widths: D_m by modality, of all that the directions name.
        directions: (source, target) each.
        shape: Sizes and choices.
        earlier: The stages before; an added stage passes through the first one's mixture.
        grown: Give an added stage experts of its own beside the earlier, frozen ones.
    """

    def __init__(
        self,
        feature_widths: Mapping[str, int],
        directions: Sequence[Direction],
        shape: MixtureShape,
        *,
        earlier: Sequence[MixtureStage] = (),
        grown: bool = False,
    ) -> None:
        super().__init__()
        self.maps = nn.ModuleDict(
            {
                direction_name(source, target): DirectedMap(
                    feature_widths[source], feature_widths[target], shape
                )
                for source, target in directions
            }
        )
        self.shape = shape
        self.mixtures = nn.ModuleDict()
        self._shared: list[Mixture] = []
        self._mix(directions, earlier, grown=grown)

    def _mix(
        self, directions: Sequence[Direction], earlier: Sequence[MixtureStage], *, grown: bool
    ) -> None:
        known = {m for stage in earlier for d in stage.directions for m in d}
        new = list(dict.fromkeys(m for d in directions for m in d if m not in known))
        if not self.shape.share_experts:
            for direction in directions:
                groups = group_names(self.shape, [direction[0]])
                self.mixtures[direction_name(*direction)] = Mixture(self.shape, groups=groups)
            return
        before = earlier[-1].shared() if earlier else None
        if before is not None and not grown:
            check_frozen_experts(self.shape, new)
            self._shared = [before]
            return
        groups = group_names(self.shape, new)
        self.mixtures["shared"] = Mixture(self.shape, groups=groups, inherited=before)

    def shared(self) -> Mixture:
        """Return the mixture that directions of this stage share."""
        if self._shared:
            return self._shared[0]
        mixture = self.mixtures["shared"]
        assert isinstance(mixture, Mixture)
        return mixture

    def mixture_of(self, name: str) -> Mixture:
        """Return the mixture a direction passes through."""
        if name in self.mixtures:
            mixture = self.mixtures[name]
            assert isinstance(mixture, Mixture)
            return mixture
        return self.shared()

    @property
    def directions(self) -> list[Direction]:
        """(source, target) of each map, in order."""
        return [named_direction(name) for name in self.maps]


def check_frozen_experts(shape: MixtureShape, new: Sequence[str]) -> None:
    """Raise a UsageError where a new modality cannot pass through experts that are there."""
    if shape.router in BY_MODALITY:
        raise UsageError(
            f"router {shape.router}: experts belong to modalities, {', '.join(new)} has none "
            "among the frozen ones; add it with experts of its own, added_experts"
        )


def group_names(shape: MixtureShape, modalities: Sequence[str]) -> list[str]:
    """Return what the experts are shared out among."""
    if shape.router == "fixed-skill":
        return list(TASKS)
    return list(modalities) if shape.router in BY_MODALITY else ["all"]


class AltMoE(nn.Module):
    """Directed maps of any number of modalities, stage by stage.

    Source: arXiv:2409.05929.

    Args:
        stages: The first one, and those added.
    """

    def __init__(self, stages: Iterable[MixtureStage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(
        self,
        direction: Direction,
        values: Tensor,
        mask: Tensor | None = None,
        *,
        tasks: Sequence[Task] = ("contrast",),
    ) -> dict[Task, Tensor]:
        """Map a batch of the source's features into the target's feature space.

        Args:
            direction: (source, target).
            values: Features, float [B, D_a], or [B, L, D_a] with a mask.
            mask: True at valid positions, bool [B, L].
            tasks: Which vectors to return; each has its own way through the mixture.

        Returns:
            Vectors by task, float [B, D_b], of any length.
        """
        return self.with_routing(direction, values, mask, tasks=tasks)[0]

    def with_routing(
        self,
        direction: Direction,
        values: Tensor,
        mask: Tensor | None = None,
        *,
        tasks: Sequence[Task] = ("contrast",),
    ) -> tuple[dict[Task, Tensor], Routing]:
        """Return what `forward` does, and where the rows went in the mixture."""
        step, mixture = self.map_of(direction), self._mixture(direction)
        if mask is not None and not mixture.shape.per_token:
            values, mask = masked_mean(values, mask), None
        common = step.enter(values.reshape(-1, values.shape[-1]))
        rows = torch.cat([common + step.tasks[task] for task in tasks])
        counts = [(task, len(common)) for task in tasks]
        mixed, routing = mixture(rows, counts, direction[0])
        parts = [pooled(part, mask) for part in torch.split(mixed, [count for _, count in counts])]
        vectors = {task: step.heads[task](part) for task, part in zip(tasks, parts, strict=True)}
        return vectors, routing if mask is None else of_valid(routing, mask, len(tasks))

    def map_of(self, direction: Direction) -> DirectedMap:
        """Return what a direction has for itself.

        Raises:
            UsageError: There is no such direction; the message lists those there are.
        """
        step = self._stage(direction).maps[direction_name(*direction)]
        assert isinstance(step, DirectedMap)
        return step

    def open_to(self, direction: Direction, task: Task) -> list[int]:
        """Return the experts that a direction's rows of a task may choose from."""
        return self._mixture(direction).open_to(task, direction[0])

    def _mixture(self, direction: Direction) -> Mixture:
        return self._stage(direction).mixture_of(direction_name(*direction))

    def _stage(self, direction: Direction) -> MixtureStage:
        name = direction_name(*direction)
        for stage in self._stages():
            if name in stage.maps:
                return stage
        check_known(name, [direction_name(*d) for d in self.directions], what="direction")
        raise AssertionError

    @property
    def directions(self) -> list[Direction]:
        """All (source, target), in the order they joined."""
        names = [name for stage in self._stages() for name in stage.maps]
        return [named_direction(name) for name in names]

    def _stages(self) -> list[MixtureStage]:
        return [stage for stage in self.stages if isinstance(stage, MixtureStage)]

    def shape(self, direction: Direction) -> dict[str, object]:
        """Return what the tensors of a direction's path do not tell of it."""
        shape = self._mixture(direction).shape
        names = ("router", "top_k", "renormalise", "per_token")
        return {name: getattr(shape, name) for name in names}

    def path(self, direction: Direction) -> dict[str, Tensor]:
        """Return the tensors a direction's vectors pass through, by name: no other's."""
        step, mixture = self.map_of(direction), self._mixture(direction)
        tensors = {f"map.{name}": tensor for name, tensor in step.state_dict().items()}
        while True:
            prefix = f"mixture{len(mixture.all_experts())}."
            tensors |= {prefix + name: tensor for name, tensor in mixture.state_dict().items()}
            if not mixture._inherited:
                return tensors
            (mixture,) = mixture._inherited


def pooled(mixed: Tensor, mask: Tensor | None) -> Tensor:
    """Return rows as they are, or the mean over valid positions of rows [B * L, d], [B, d]."""
    return mixed if mask is None else masked_mean(mixed.view(*mask.shape, -1), mask)


def of_valid(routing: Routing, mask: Tensor, times: int) -> Routing:
    """Keep the rows of valid positions; they are there once a task."""
    valid = mask.flatten().repeat(times)
    return Routing(routing.shares[valid], routing.chosen[valid])


def balance_loss(routing: Routing) -> Tensor:
    """Return how unevenly a batch's rows use the experts: 1 where all are used alike, at most E.

    E times the sum over experts of (share of the rows' choices) x (mean gate share).

    Source: Fedus et al. 2022, arXiv:2101.03961, equation 4; for top-k, choices are counted.
    """
    count = routing.shares.shape[1]
    load = torch.bincount(routing.chosen.flatten(), minlength=count) / routing.chosen.numel()
    return count * (load.to(routing.shares) * routing.shares.mean(0)).sum()


def direction_name(source: str, target: str) -> str:
    """Return how a direction is written."""
    return f"{source}>{target}"


def named_direction(name: str) -> Direction:
    """Return (source, target) of a name.

    Raises:
        UsageError: It is no name of a direction.
    """
    source, arrow, target = name.partition(">")
    if not (source and arrow and target) or source == target:
        raise UsageError(
            f"direction {name!r}: expected SOURCE>TARGET, two modalities, as in image>text"
        )
    return source, target
