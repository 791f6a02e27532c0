"""OneEncoder's parts: sizes as published, formulas in loops, and the public code's defects."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from modalign.connectors.blocks import map_in_blocks
from modalign.connectors.universal_projection import (
    AlignmentLayer,
    Fusion,
    ModalityEntrance,
    ModalityTokens,
    OneEncoder,
    PostNormLayer,
    UniversalProjection,
)
from modalign.encoders import Features
from modalign.errors import DataError, ShapeError, UsageError

FUSIONS = ["addition", "multiplication", "concatenation", "scaled_dot", "additive", "general"]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def embed_in_blocks(model: OneEncoder, modality: str, features: Features) -> np.ndarray:
    def way(values, mask):
        return model(modality, values, mask)

    return map_in_blocks(model, features, way=way)


def small_model(fusion: str = "addition", *, depth: int = 1, token: str = "mlp") -> OneEncoder:
    torch.manual_seed(0)
    model = OneEncoder(
        UniversalProjection(16, depth=depth, heads=4, feedforward=24, dropout=0.5),
        Fusion(16, kind=fusion),
        ModalityEntrance({"image": 5, "text": 7}, 16, token=token, dropout=0.5),
    )
    for parameter in model.parameters():  # nothing may hide behind a zero or a one
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(rows: int, length: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(seed))


def test_sizes_are_the_published_ones():
    entrance = ModalityEntrance({"image": 768, "text": 768}, 256)
    projection = UniversalProjection(256)
    assert count(AlignmentLayer(768, 256)) == 263_168
    assert count(projection) == 1_315_584
    assert count(entrance.tokens) == 42_112 + 2 * 3
    assert count(OneEncoder(projection, Fusion(256), entrance)) == 1_884_038
    assert count(ModalityEntrance({"audio": 768}, 256)) == 305_283
    assert count(ModalityTokens(["image"], 768, form="direct")) == 768


def test_the_older_size_is_about_24_million():
    model = OneEncoder(
        UniversalProjection(768, depth=4),
        Fusion(768),
        ModalityEntrance({"image": 768, "text": 768}, 768, token="direct"),
    )
    assert count(model) / 1e6 == pytest.approx(24.4, abs=0.1)


@pytest.mark.parametrize(
    ("kind", "parameters"), list(zip(FUSIONS, [0, 0, 0, 197_376, 131_841, 65_792], strict=True))
)
def test_fusions_have_the_published_sizes(kind, parameters):
    assert count(Fusion(256, kind=kind)) == parameters


def test_a_layer_is_torchs_post_norm_transformer_layer():
    ours = PostNormLayer(16, heads=4, feedforward=24, dropout=0.0).eval()
    theirs = nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True).eval()
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": ours.attention_in.weight,
            "self_attn.in_proj_bias": ours.attention_in.bias,
            "self_attn.out_proj.weight": ours.attention_out.weight,
            "self_attn.out_proj.bias": ours.attention_out.bias,
            "linear1.weight": ours.widen.weight,
            "linear1.bias": ours.widen.bias,
            "linear2.weight": ours.narrow.weight,
            "linear2.bias": ours.narrow.bias,
            "norm1.weight": ours.norm1.weight,
            "norm1.bias": ours.norm1.bias,
            "norm2.weight": ours.norm2.weight,
            "norm2.bias": ours.norm2.bias,
        }
    )
    for length in (1, 5):
        x = tokens(3, length, 16)
        mask = torch.ones(3, length, dtype=torch.bool)
        mask[1, 1:] = False
        padded = theirs(x, src_key_padding_mask=~mask)
        torch.testing.assert_close(ours(x, mask)[mask], padded[mask], rtol=1e-4, atol=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ShapeError, match="width 16 is not a multiple of 3 heads"):
        PostNormLayer(16, heads=3, feedforward=8, dropout=0.0)


@torch.no_grad()
def slow_context(fusion, x, token, mask):
    """The attention fusions, position by position."""
    parts, width = fusion.linears, x.shape[-1]
    contexts = []
    for row in range(len(x)):
        valid = [i for i in range(x.shape[1]) if mask[row, i]]
        weighed = x[row]
        if fusion.kind == "scaled_dot":
            query = parts["query"](token[0, 0])
            scores = [float(query @ parts["key"](x[row, i])) / math.sqrt(width) for i in valid]
            weighed = parts["value"](x[row])
        elif fusion.kind == "additive":
            hidden = parts["token"](token[0, 0])
            scores = [
                float(parts["score"](torch.tanh(hidden + parts["position"](x[row, i]))))
                for i in valid
            ]
        else:
            scores = [float(token[0, 0] @ parts["position"](x[row, i])) for i in valid]
        weights = np.exp(scores) / np.exp(scores).sum()
        contexts.append(sum(float(w) * weighed[i] for w, i in zip(weights, valid, strict=True)))
    return torch.stack(contexts).unsqueeze(1)


@pytest.mark.parametrize("kind", ["scaled_dot", "additive", "general"])
def test_attention_fusions_add_the_weighted_mean_of_valid_positions(kind):
    fusion = Fusion(8, kind=kind)
    x, token = tokens(3, 4, 8), tokens(1, 1, 8, seed=1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    fused, fused_mask = fusion(x, token, mask)
    expected = x + slow_context(fusion, x, token, mask)
    torch.testing.assert_close(fused, expected.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(fused_mask, mask)


def test_the_plain_fusions_do_as_they_are_called():
    x, token = tokens(2, 3, 8), tokens(1, 1, 8, seed=1)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    assert torch.equal(Fusion(8)(x, token, mask)[0], x + token)
    assert torch.equal(Fusion(8, kind="multiplication")(x, token, mask)[0], x * token)
    joined, joined_mask = Fusion(8, kind="concatenation")(x, token, mask)
    assert joined.shape == (2, 18, 8)
    assert torch.equal(joined[:, :15], token.expand(2, 15, 8))
    assert torch.equal(joined[:, 15:], x)
    assert joined_mask[:, :15].all()
    assert torch.equal(joined_mask[:, 15:], mask)


def test_an_unknown_fusion_lists_the_known():
    with pytest.raises(UsageError, match="fusion 'sum' is unknown; known: addition, additive"):
        Fusion(8, kind="sum")


@pytest.mark.parametrize("kind", FUSIONS)
@pytest.mark.parametrize("depth", [1, 2])
def test_padding_changes_no_vector(kind, depth):
    """Defect 1: public pooling and attention see padding; a text changed with its batch."""
    model = small_model(kind, depth=depth).eval()
    x = tokens(1, 3, 7)
    alone = model("text", x, torch.ones(1, 3, dtype=torch.bool))
    longer = torch.cat([x, 1000 * torch.ones(1, 4, 7)], 1)
    mask = torch.tensor([[True] * 3 + [False] * 4])
    torch.testing.assert_close(model("text", longer, mask), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_vector_has_the_same_bits_alone_and_in_company(kind):
    model = small_model(kind)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((41, 9, 7)).astype(np.float16)
    lengths = rng.integers(1, 10, 41)
    mask = np.arange(9) < lengths[:, None]
    together = embed_in_blocks(model, "text", Features(values, mask))
    for row in (0, 17, 40):
        cut = int(lengths[row])
        alone = Features(values[row : row + 1, :cut], mask[row : row + 1, :cut])
        assert np.array_equal(embed_in_blocks(model, "text", alone)[0], together[row])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_among_a_thousand_and_with_other_threads(threads):
    before = torch.get_num_threads()
    torch.manual_seed(1)
    model = OneEncoder(
        UniversalProjection(256), Fusion(256), ModalityEntrance({"image": 384, "text": 64}, 256)
    )
    features = Features(np.random.default_rng(0).standard_normal((1000, 384)).astype(np.float16))
    expected = embed_in_blocks(model, "image", features)
    try:
        torch.set_num_threads(threads)
        for row in (0, 1, 31, 32, 500, 999):
            assert np.array_equal(embed_in_blocks(model, "image", features[row])[0], expected[row])
        assert np.array_equal(embed_in_blocks(model, "image", features[::-1])[::-1], expected)
    finally:
        torch.set_num_threads(before)


def test_vectors_have_unit_length():
    vectors = embed_in_blocks(small_model(), "image", Features(np.eye(5, dtype=np.float32)))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)


def test_embedding_leaves_the_modes_as_they_were_and_uses_no_dropout():
    """Defect 2: public code leaves frozen parts in train mode, with dropout in features."""
    model = small_model().train()
    model.projection.eval()
    features = Features(np.ones((2, 5), np.float32))
    first = embed_in_blocks(model, "image", features)
    assert np.array_equal(first, embed_in_blocks(model, "image", features))
    assert model.entrances[0].training
    assert not model.projection.training


def test_modes_come_back_after_an_error():
    model = small_model().train()
    mismatched = Features(np.ones((2, 6), np.float32))
    with pytest.raises(RuntimeError, match="size of tensor"):
        embed_in_blocks(model, "image", mismatched)
    assert model.training


def test_two_models_share_no_weight():
    """Defect 4: modules as default arguments made two models share weights."""
    first, second = small_model(), small_model()
    first.projection.norm.weight.data.fill_(9.0)
    assert float(second.projection.norm.weight.detach().max()) < 9.0


def test_any_number_of_modalities_live_in_one_model():
    """Defect 8: no public code holds two added modalities."""
    model = small_model()
    for name in ("audio", "video", "depth"):
        model.entrances.append(ModalityEntrance({name: 6}, 16))
    assert model.modalities == ["image", "text", "audio", "video", "depth"]
    vectors = embed_in_blocks(model, "depth", Features(np.ones((1, 6), np.float32)))
    assert vectors.shape == (1, 16)


def test_an_unknown_modality_lists_the_known():
    with pytest.raises(UsageError, match="modality 'smell' is unknown; known: image, text"):
        small_model()("smell", torch.ones(1, 5))


def test_a_modalitys_path_holds_no_other_modality():
    model = small_model()
    names = model.path("image")
    assert names["aligner.inner.weight"].shape == (16, 5)
    model.entrances[0].aligners["text"].inner.weight.data.zero_()
    after = model.path("image")
    assert all(torch.equal(names[name], after[name]) for name in names)


def test_features_that_are_not_finite_are_refused_by_row():
    values = np.ones((4, 5), np.float32)
    values[2, 1] = np.nan
    with pytest.raises(DataError, match=r"1 of 4 rows hold NaN.*first: row 2"):
        embed_in_blocks(small_model(), "image", Features(values))


def test_a_row_without_a_valid_position_is_refused():
    features = Features(np.ones((2, 3, 7), np.float32), np.array([[1, 1, 1], [0, 0, 0]], bool))
    with pytest.raises(DataError, match="row 1 has no valid position"):
        embed_in_blocks(small_model(), "text", features)


def test_a_constant_dimension_is_centred_and_gives_no_nan():
    layer = AlignmentLayer(3, 4)
    layer.standardization.fit(torch.tensor([5.0, 1.0, 0.0]), torch.tensor([0.0, 2.0, 1.0]))
    assert torch.isfinite(layer(torch.tensor([[[5.0, 1.0, 0.0]]]))).all()
    assert float(layer.standardization.deviation[0]) == pytest.approx(0.002)
    layer.standardization.fit(torch.zeros(3), torch.zeros(3))
    assert layer.standardization.deviation.tolist() == [1.0, 1.0, 1.0]
