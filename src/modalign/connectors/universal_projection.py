"""OneEncoder: a Universal Projection trained once, and an alignment layer per later modality.

    feature --AlignmentLayer--> x --Fusion with the ModalityToken--> o
    o --UniversalProjection--> y + o --mean over valid positions--> unit vector

Source: OneEncoder, 2024, arXiv:2409.11059; the sizes are those of its public code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modalign.connectors.dropout import Dropout
from modalign.connectors.standardization import Standardization
from modalign.errors import ShapeError, check_known

FusionName = Literal[
    "addition", "multiplication", "concatenation", "scaled_dot", "additive", "general"
]
TokenForm = Literal["mlp", "direct"]

# The released code puts the token this many times in front of the sequence.
CONCATENATED_TOKENS = 15
TOKEN_SEED_WIDTH = 3
# What is added to the aligned features starts small: with a few thousand pairs the connector
# then learns to the recall of plain heads, else it stays below.
SMALL_START = 0.1


class AlignmentLayer(nn.Module):
    """Bring features of one encoder to the shared width, position by position.

    Linear, GELU, Linear, Dropout, LayerNorm, without a residual: 263,168 parameters from 768
    to 256. It is the head of the first stage and the alignment layer of the later ones.

    Source: arXiv:2409.11059, section 3. Differs: features are standardised first, with the
    mean and deviation of the training split (`Standardization`), where `fit` was called.

    Args:
        feature_width: D_m of the encoder.
        width: D of the space.
        dropout: Share of outputs dropped in training, 0 <= dropout < 1.
        feature_dropout: Share of the standardised features dropped in training.
    """

    def __init__(
        self,
        feature_width: int,
        width: int,
        *,
        dropout: float = 0.1,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.standardization = Standardization(feature_width)
        self.feature_dropout = Dropout(feature_dropout)
        self.inner = nn.Linear(feature_width, width)
        self.outer = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """Map float [B, L, D_m] to float [B, L, D]."""
        standard = self.standardization(features)
        hidden = F.gelu(self.inner(self.feature_dropout(standard)))
        aligned: Tensor = self.norm(self.dropout(self.outer(hidden)))
        return aligned


class ModalityTokens(nn.Module):
    """One learned token a modality, the same for all its items.

    Source: arXiv:2409.11059. "mlp" is the released form, three numbers a modality through an
    MLP 3-64-128-D with LayerNorm that the modalities of a stage share (42,112 parameters at
    D = 256; the activation is not stated, ours is GELU); "direct" is the older one, D numbers.

    Args:
        modalities: Names.
        width: D of the space.
        form: "mlp" or "direct".
    """

    def __init__(self, modalities: Sequence[str], width: int, *, form: TokenForm = "mlp") -> None:
        super().__init__()
        check_known(form, ["mlp", "direct"], what="token form")
        seed_width = TOKEN_SEED_WIDTH if form == "mlp" else width
        self.seeds = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(1, seed_width)) for name in modalities}
        )
        if form == "direct":
            for seed in self.seeds.values():
                seed.data.mul_(SMALL_START)
        self.mlp = token_mlp(width) if form == "mlp" else nn.Identity()

    def forward(self, modality: str) -> Tensor:
        """Return a modality's token, float [1, 1, D]."""
        token: Tensor = self.mlp(self.seeds[modality])
        return token.unsqueeze(0)


def token_mlp(width: int) -> nn.Module:
    """Return the MLP 3-64-128-D with LayerNorm of the released modality token."""
    norm = nn.LayerNorm(width)
    nn.init.constant_(norm.weight, SMALL_START)
    return nn.Sequential(
        nn.Linear(TOKEN_SEED_WIDTH, 64),
        nn.GELU(),
        nn.Linear(64, 128),
        nn.GELU(),
        nn.Linear(128, width),
        norm,
    )


class Fusion(nn.Module):
    """Join a modality's token t [1, 1, D] to its sequence x [B, L, D].

    addition x + t; multiplication x * t; concatenation: t fifteen times in front of x, and
    dropped after the projection; the attentions add a context to x: the mean of x (of the
    values of x, for scaled_dot) weighted by softmax over valid positions of
    scaled_dot (Wq t).(Wk x) / sqrt(D), additive v.tanh(W1 t + W2 x), or general t.(W x).

    Source: arXiv:2409.11059; additive attention of Bahdanau et al. 2015, arXiv:1409.0473;
    general attention of Luong et al. 2015, arXiv:1508.04025. Differs: padding has no weight.
    Parameters at D = 256: 0, 0, 0, 197,376, 131,841, 65,792.
    """

    def __init__(self, width: int, *, kind: FusionName = "addition") -> None:
        super().__init__()
        check_known(kind, FUSIONS, what="fusion")
        self.kind = kind
        self.linears = nn.ModuleDict(
            {name: nn.Linear(width, out or width) for name, out in FUSIONS[kind]}
        )

    def forward(self, x: Tensor, token: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            x: float [B, L, D].
            token: float [1, 1, D].
            mask: True at valid positions, bool [B, L].

        Returns:
            The fused sequence and its mask; 15 positions longer for concatenation.
        """
        if self.kind == "addition":
            return x + token, mask
        if self.kind == "multiplication":
            return x * token, mask
        if self.kind == "concatenation":
            front = token.expand(len(x), CONCATENATED_TOKENS, -1)
            front_mask = mask.new_ones(len(x), CONCATENATED_TOKENS)
            return torch.cat([front, x], 1), torch.cat([front_mask, mask], 1)
        scores, values = self._scores(x, token)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return x + weights.unsqueeze(1) @ values, mask

    def _scores(self, x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Return the token's attention scores [B, L] and what they weigh [B, L, D]."""
        parts = self.linears
        if self.kind == "scaled_dot":
            products = (parts["key"](x) * parts["query"](token)).sum(-1)
            return products / x.shape[-1] ** 0.5, parts["value"](x)
        if self.kind == "additive":
            hidden = torch.tanh(parts["token"](token) + parts["position"](x))
            return parts["score"](hidden).squeeze(-1), x
        return (parts["position"](x) * token).sum(-1), x

    def front(self) -> int:
        """Return how many positions fusion puts in front of the sequence."""
        return CONCATENATED_TOKENS if self.kind == "concatenation" else 0


# Each fusion's linear maps: (name, width out; 0 for D).
FUSIONS: dict[str, list[tuple[str, int]]] = {
    "addition": [],
    "multiplication": [],
    "concatenation": [],
    "scaled_dot": [("query", 0), ("key", 0), ("value", 0)],
    "additive": [("token", 0), ("position", 0), ("score", 1)],
    "general": [("position", 0)],
}


class PostNormLayer(nn.Module):
    """A transformer encoder layer with the norms after the residuals.

    Self-attention over valid positions, then a ReLU feed-forward.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.1. A sequence of one position
    attends to itself with weight 1, so queries and keys are not computed for it.
    """

    def __init__(self, width: int, *, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ShapeError(f"width {width} is not a multiple of {heads} heads; change one")
        self.heads = heads
        self.drop = Dropout(dropout)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.widen = nn.Linear(width, feedforward)
        self.narrow = nn.Linear(feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.attention_in.weight)
        nn.init.zeros_(self.attention_in.bias)
        nn.init.zeros_(self.attention_out.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map float [B, L, D] to float [B, L, D]; `mask` is bool [B, L]."""
        x = self.norm1(x + self.drop(self.attention_out(self._attend(x, mask))))
        hidden = self.drop(F.relu(self.widen(x)))
        out: Tensor = self.norm2(x + self.drop(self.narrow(hidden)))
        return out

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        head_width = width // self.heads
        if length == 1:
            weight, bias = self.attention_in.weight[-width:], self.attention_in.bias[-width:]
            values = F.linear(x, weight, bias).view(batch, self.heads, head_width)
            kept: Tensor = self.drop(x.new_ones(batch, self.heads, 1))
            return (values * kept).view(batch, 1, width)
        query, key, value = (
            part.view(batch, length, self.heads, head_width).transpose(1, 2)
            for part in self.attention_in(x).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask[:, None, None, :],
            dropout_p=self.drop.share if self.training else 0.0,
        )
        return attended.transpose(1, 2).reshape(batch, length, width)


class UniversalProjection(nn.Module):
    """The part all modalities share: y + o with y = layers(LayerNorm(o)).

    1,315,584 parameters at width 256 and depth 1.

    Source: arXiv:2409.11059, section 3. Differs: y starts at a tenth of its size.

    Args:
        width: D of the space.
        depth: Transformer layers, >= 1; the released code has 1, an older one 4.
        heads: Attention heads; `width` is a multiple.
        feedforward: Width of the feed-forward.
        dropout: Share dropped in training.
    """

    def __init__(
        self,
        width: int = 256,
        *,
        depth: int = 1,
        heads: int = 4,
        feedforward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            PostNormLayer(width, heads=heads, feedforward=feedforward, dropout=dropout)
            for _ in range(depth)
        )
        last = self.layers[-1]
        assert isinstance(last, PostNormLayer)
        nn.init.constant_(last.norm2.weight, SMALL_START)

    def forward(self, fused: Tensor, mask: Tensor) -> Tensor:
        """Map the fused sequence, float [B, L, D], to float [B, L, D]."""
        y = self.norm(fused)
        for layer in self.layers:
            y = layer(y, mask)
        result: Tensor = y + fused
        return result


class ModalityEntrance(nn.Module):
    """What a stage trains for its modalities: an alignment layer and a token each.

    305,283 parameters for a modality of width 768 added to a space of width 256.

    Args:
        feature_widths: D_m by modality.
        width: D of the space.
        token: Form of the modality token.
        dropout: Share of the alignment layer's outputs dropped in training.
        feature_dropout: Share of the standardised features dropped in training.
    """

    def __init__(
        self,
        feature_widths: Mapping[str, int],
        width: int = 256,
        *,
        token: TokenForm = "mlp",
        dropout: float = 0.1,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.aligners = nn.ModuleDict(
            {
                name: AlignmentLayer(
                    feature_width, width, dropout=dropout, feature_dropout=feature_dropout
                )
                for name, feature_width in feature_widths.items()
            }
        )
        self.tokens = ModalityTokens(list(feature_widths), width, form=token)

    def forward(self, modality: str, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the aligned sequence [B, L, D] and the token [1, 1, D]."""
        return self.aligners[modality](features), self.tokens(modality)

    def standardize(self, modality: str, mean: Tensor, deviation: Tensor) -> None:
        """Set what a modality's features are standardised with, float [D_m] each."""
        aligner = self.aligners[modality]
        assert isinstance(aligner, AlignmentLayer)
        aligner.standardization.fit(mean, deviation)


class OneEncoder(nn.Module):
    """Any number of modalities through one Universal Projection.

    The first stage trains `fusion`, `projection` and the first entrance; each later stage
    trains one more entrance, with all before it frozen.

    Source: arXiv:2409.11059. Differs: padding never changes a vector (the public code pools
    and attends over it).

    Args:
        projection: The shared part.
        fusion: How tokens and sequences are joined.
        entrance: The first stage's modalities.
    """

    def __init__(
        self, projection: UniversalProjection, fusion: Fusion, entrance: ModalityEntrance
    ) -> None:
        super().__init__()
        self.projection = projection
        self.fusion = fusion
        self.entrances = nn.ModuleList([entrance])

    def forward(self, modality: str, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed a batch.

        Args:
            modality: One of `modalities`.
            values: Features, float [B, D_m], or [B, L, D_m] with a mask.
            mask: True at valid positions, bool [B, L]; each row has at least one.

        Returns:
            Unit vectors, float [B, D].
        """
        if mask is None:
            values = values.unsqueeze(1)  # [B, 1, D_m]
            mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        x, token = self.entrance_of(modality)(modality, values)
        fused, fused_mask = self.fusion(x, token, mask)
        projected = self.projection(fused, fused_mask)[:, self.fusion.front() :]
        return F.normalize(masked_mean(projected, mask), dim=-1)

    def entrance_of(self, modality: str) -> ModalityEntrance:
        """Return the entrance a modality came with."""
        for entrance in self.entrances:
            assert isinstance(entrance, ModalityEntrance)
            if modality in entrance.aligners:
                return entrance
        check_known(modality, self.modalities, what="modality")
        raise AssertionError

    @property
    def modalities(self) -> list[str]:
        """Names, in the order they joined."""
        names: list[str] = []
        for entrance in self.entrances:
            assert isinstance(entrance, ModalityEntrance)
            names += entrance.aligners.keys()
        return names

    def path(self, modality: str) -> dict[str, Tensor]:
        """Return the tensors a modality's vectors pass through, by name: no other's."""
        entrance = self.entrance_of(modality)
        parts: dict[str, Callable[[], dict[str, Tensor]]] = {
            "projection.": self.projection.state_dict,
            "fusion.": self.fusion.state_dict,
            "aligner.": entrance.aligners[modality].state_dict,
            "token.mlp.": entrance.tokens.mlp.state_dict,
        }
        tensors = {
            prefix + name: tensor for prefix, get in parts.items() for name, tensor in get().items()
        }
        return tensors | {"token.seed": entrance.tokens.seeds[modality].detach()}


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of x [B, L, D] over valid positions, [B, D]."""
    weights = mask.unsqueeze(-1).to(x.dtype)
    return (x * weights).sum(1) / weights.sum(1)
