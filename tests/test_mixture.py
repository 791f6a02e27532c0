"""Alt-MoE's parts: the paper's formulas in loops, its sizes, and rows that know no neighbours."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modalign.connectors.blocks import map_in_blocks
from modalign.connectors.mixture import (
    TASKS,
    AltMoE,
    Mixture,
    MixtureShape,
    MixtureStage,
    Routing,
    Task,
    balance_loss,
    named_direction,
)
from modalign.encoders import Features
from modalign.errors import ShapeError, UsageError
from modalign.losses import prediction_loss
from modalign.training.alternation import Alternation

WIDTHS = {"image": 5, "text": 7, "audio": 3}
THERE, BACK = ("image", "text"), ("text", "image")
ADDED = [("audio", "text"), ("text", "audio")]
ROUTERS = ["learned", "fixed-modality", "fixed-skill", "grouped", "dense", "mlp"]
# Every axis has another length.
SMALL = MixtureShape(width=6, experts=4, top_k=2, dropout=0.5)


def shape(**changes: Any) -> MixtureShape:
    return dataclasses.replace(SMALL, **changes)


def stirred(module: nn.Module, seed: int = 0) -> None:
    """Move every weight: nothing may hide behind a zero, a one, or a small start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.add_(0.5 * torch.randn(parameter.shape, generator=generator))


def model_of(seed: int = 0, **changes: Any) -> AltMoE:
    torch.manual_seed(seed)
    model = AltMoE([MixtureStage(WIDTHS, [THERE, BACK], shape(**changes))])
    stirred(model, seed)
    return model.eval()


def with_audio(model: AltMoE, *, grown: bool, **changes: Any) -> AltMoE:
    """Add a stage of audio; grown ones have three experts of their own."""
    earlier = [stage for stage in model.stages if isinstance(stage, MixtureStage)]
    given = {"experts": 3 if grown else 4, **changes}
    wanted = dataclasses.replace(earlier[0].shape, **given)
    stage = MixtureStage(WIDTHS, ADDED, wanted, earlier=earlier, grown=grown)
    stirred(stage, 7)
    model.stages.append(stage)
    return model.eval()


def rows(count: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# The formula, row by row ------------------------------------------------------------------


def linear(layer: Any, x: np.ndarray) -> np.ndarray:
    weight, bias = (t.detach().double().numpy() for t in (layer.weight, layer.bias))
    return weight @ x + bias


def gelu(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def slow_weights(mixture: Mixture, x: np.ndarray, task: str, source: str) -> dict[int, float]:
    """The weight of each expert that a row passes through."""
    chosen = mixture.shape
    if chosen.router == "mlp":
        return {0: 1.0}
    if chosen.router in ("fixed-modality", "fixed-skill"):
        half = {"image": [0, 1], "text": [2, 3], "prediction": [0, 1], "contrast": [2, 3]}
        members = half[source if chosen.router == "fixed-modality" else task]
        return dict.fromkeys(members, 0.5)
    logits = linear(mixture.gate, x)
    if chosen.router == "grouped":
        members = {"image": [0, 1], "text": [2, 3]}[source]
        weights = dict(zip(members, softmax(logits[members]), strict=True))
    else:
        weights = dict(enumerate(softmax(logits)))
    count = len(weights) if chosen.router == "dense" else chosen.top_k
    best = sorted(weights, key=lambda index: -weights[index])[:count]
    total = sum(weights[index] for index in best) if chosen.renormalise else 1.0
    return {index: weights[index] / total for index in best}


def slow_mixture(mixture: Mixture, x: np.ndarray, task: str, source: str) -> np.ndarray:
    """GELU(LayerNorm_task(weighted experts)) + x of one row."""
    mixed = np.zeros_like(x)
    for index, weight in slow_weights(mixture, x, task, source).items():
        expert: Any = mixture.experts[index]
        mixed += weight * linear(expert.outer, gelu(linear(expert.inner, x)))
    norm: Any = mixture.norms[task]
    scaled = (mixed - mixed.mean()) / math.sqrt(mixed.var() + norm.eps)
    scale, shift = (t.detach().double().numpy() for t in (norm.weight, norm.bias))
    return gelu(scaled * scale + shift) + x


def slow_entered(model: AltMoE, direction: tuple[str, str], z: np.ndarray, task: str) -> np.ndarray:
    """W (z + E_a) + E_a' + E_task of one row, with either place of the modality embedding."""
    step = model.map_of(direction)
    places = {name: p.detach().double().numpy() for name, p in step.modality.items()}
    common = linear(step.projection, z + places.get("input", 0.0)) + places.get("common", 0.0)
    entered: np.ndarray = common + step.tasks[task].detach().double().numpy()
    return entered


def slow_map(model: AltMoE, direction: tuple[str, str], z: np.ndarray, task: str) -> np.ndarray:
    entered = slow_entered(model, direction, z, task)
    stage: Any = model.stages[0]
    mixture = stage.mixture_of(f"{direction[0]}>{direction[1]}")
    return linear(
        model.map_of(direction).heads[task], slow_mixture(mixture, entered, task, direction[0])
    )


@pytest.mark.parametrize("direction", [THERE, BACK])
@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": 3},
        {"top_k": 3, "renormalise": True},
        {"top_k": 1},
        {"router": "dense"},
        {"router": "fixed-modality"},
        {"router": "fixed-skill"},
        {"router": "grouped", "top_k": 1},
        {"router": "grouped", "top_k": 2, "renormalise": True},
        {"router": "mlp"},
        {"modality_embedding": "common"},
        {"modality_embedding": "both"},
        {"share_experts": False},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_a_row_becomes_what_the_papers_formula_says(direction, changes):
    model = model_of(**changes)
    features = rows(9, WIDTHS[direction[0]])
    with torch.no_grad():
        found = model(direction, features, tasks=TASKS)
    for task in TASKS:
        expected = [slow_map(model, direction, z, task) for z in features.double().numpy()]
        np.testing.assert_allclose(found[task].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_features_are_standardised_first():
    model = model_of()
    plain = model(THERE, torch.ones(1, 5))
    model.map_of(THERE).standardization.fit(torch.full((5,), 3.0), torch.full((5,), 2.0))
    torch.testing.assert_close(model(THERE, torch.full((1, 5), 5.0)), plain)


def test_top_k_weights_sum_to_one_only_where_they_are_renormalised():
    """Shares are of a softmax over all experts; what the others would get is lost."""
    x = rows(5, 6)
    for renormalise in (False, True):
        mixture = Mixture(shape(renormalise=renormalise), groups=["all"]).eval()
        for expert in mixture.experts:
            expert.outer.weight.data.zero_()
            expert.outer.bias.data.fill_(1.0)
        routing = mixture.route(x, [("contrast", 5)], "image")
        summed = mixture.combine(x, routing)[:, 0]
        wanted = torch.ones(5) if renormalise else routing.shares.sort(descending=True)[0][:, :2]
        torch.testing.assert_close(summed, wanted if renormalise else wanted.sum(1))


def test_shares_are_float32_where_training_computes_in_bfloat16():
    mixture = Mixture(SMALL, groups=["all"])
    x = rows(9, 6).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, routing = mixture(x, [("contrast", 9)], "image")
    assert routing.shares.dtype == mixed.dtype == torch.float32
    mixed.sum().backward()


# The two ways to compute it ---------------------------------------------------------------


@pytest.mark.parametrize("router", ROUTERS)
def test_training_and_inference_compute_the_same(router):
    model = model_of(router=router, dropout=0.0)
    features = rows(33, 5)
    training = model(THERE, features, tasks=TASKS)
    assert training["contrast"].requires_grad
    with torch.no_grad():
        inference = model(THERE, features, tasks=TASKS)
    for task in TASKS:
        torch.testing.assert_close(training[task], inference[task], rtol=1e-5, atol=1e-5)


def test_training_runs_an_expert_on_its_own_rows_alone():
    """What a mixture costs in training: k of E experts a row, not all."""
    model = model_of(experts=4, top_k=1)
    seen: list[int] = []
    stage: Any = model.stages[0]
    for expert in stage.shared().experts:
        expert.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    model(THERE, rows(40, 5))
    assert sum(seen) == 40
    assert max(seen) < 40


@pytest.mark.parametrize("router", ROUTERS)
def test_both_tasks_at_once_are_each_by_itself(router):
    model = model_of(router=router)
    features = rows(9, 5)
    both = model(THERE, features, tasks=TASKS)
    for task in TASKS:
        torch.testing.assert_close(both[task], model(THERE, features, tasks=[task])[task])
    assert not torch.allclose(both["contrast"], both["prediction"])


def mapped(model: AltMoE, features: Features, task: Task = "contrast") -> np.ndarray:
    def way(values: Tensor, mask: Tensor | None) -> Tensor:
        return model(THERE, values, mask, tasks=[task])[task]

    return map_in_blocks(model, features, way=way)


@pytest.mark.parametrize("router", ROUTERS)
def test_a_row_has_the_same_bits_alone_and_in_company(router):
    torch.manual_seed(0)
    wide = MixtureShape(width=64, experts=6, top_k=2, router=router)
    model = AltMoE([MixtureStage({"image": 48, "text": 40}, [THERE], wide)])
    values = np.random.default_rng(0).standard_normal((300, 48)).astype(np.float16)
    together = mapped(model, Features(values))
    for row in (0, 1, 31, 32, 150, 299):
        assert np.array_equal(mapped(model, Features(values[row : row + 1]))[0], together[row])
    assert np.array_equal(mapped(model, Features(values[::-1]))[::-1], together)


def test_an_expert_that_overflows_harms_its_own_rows_alone():
    model, features = model_of(top_k=1), Features(rows(40, 5).numpy())
    before = mapped(model, features)
    _, routing = model.with_routing(THERE, torch.from_numpy(features.values))
    stage: Any = model.stages[0]
    stage.shared().experts[int(routing.chosen[0])].outer.bias.data.fill_(torch.inf)
    after = mapped(model, features)
    same = (before == after).all(1)
    assert 0 < same.sum() < 40
    assert np.array_equal(same, (routing.chosen != routing.chosen[0]).any(1).numpy())


@pytest.mark.parametrize("per_token", [False, True])
def test_tokens_have_the_same_bits_alone_and_in_company(per_token):
    torch.manual_seed(0)
    wide = MixtureShape(width=32, experts=6, top_k=2, per_token=per_token)
    model = AltMoE([MixtureStage({"image": 20, "text": 40}, [THERE], wide)])
    rng = np.random.default_rng(0)
    values = rng.standard_normal((41, 9, 20)).astype(np.float16)
    lengths = rng.integers(1, 10, 41)
    mask = np.arange(9) < lengths[:, None]
    together = mapped(model, Features(values, mask))
    for row in (0, 17, 40):
        cut = int(lengths[row])
        alone = Features(values[row : row + 1, :cut], mask[row : row + 1, :cut])
        assert np.array_equal(mapped(model, alone)[0], together[row])


# Tokens -----------------------------------------------------------------------------------


def tokens() -> tuple[Tensor, Tensor]:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    return rows(6, 5).view(2, 3, 5), mask


def test_by_default_the_mean_of_valid_tokens_is_mapped():
    model, (values, mask) = model_of(), tokens()
    means = torch.stack([values[0].mean(0), values[1, 0]])
    torch.testing.assert_close(model(THERE, values, mask), model(THERE, means))


def test_per_token_each_position_goes_through_the_mixture_and_the_mean_through_the_head():
    model, (values, mask) = model_of(per_token=True), tokens()
    found = model(THERE, values, mask)["contrast"].detach().numpy()
    stage: Any = model.stages[0]
    for row in range(2):
        mixed = [
            slow_mixture(stage.shared(), slow_entered(model, THERE, z, "contrast"), "contrast", "")
            for z in values[row][mask[row]].double().numpy()
        ]
        expected = linear(model.map_of(THERE).heads["contrast"], np.mean(mixed, axis=0))
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_the_routing_of_tokens_leaves_padding_out_and_lists_each_task():
    model, (values, mask) = model_of(per_token=True), tokens()
    _, routing = model.with_routing(THERE, values, mask, tasks=TASKS)
    alone = [
        model.with_routing(THERE, values[mask].detach(), tasks=[task])[1].chosen for task in TASKS
    ]
    assert torch.equal(routing.chosen, torch.cat(alone))
    assert routing.shares.shape == (8, 4)


# Sizes ------------------------------------------------------------------------------------


def test_the_papers_size_is_the_papers():
    """129 to 141 million trained numbers; Qwen2-7B is 3,584 wide, DINOv2-L 1,024."""
    paper = MixtureShape(width=2048, experts=12, top_k=4)
    with torch.device("meta"):
        stage = MixtureStage({"image": 1024, "text": 3584}, [THERE, BACK], paper)
    assert 128.9e6 < count(stage) < 141e6
    assert count(stage.shared().experts) == 12 * (2 * 2048 * 2048 + 2 * 2048)


@pytest.mark.parametrize(("width", "experts"), [(128, 6), (256, 8), (512, 8), (2048, 12)])
def test_the_twin_without_experts_has_as_many_parameters(width, experts):
    with torch.device("meta"):
        sizes = [
            count(
                Mixture(MixtureShape(width=width, experts=experts, router=router), groups=["all"])
            )
            for router in ("learned", "mlp")
        ]
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-3)


def test_the_twin_without_experts_has_one_and_no_gate():
    mixture = Mixture(shape(router="mlp"), groups=["all"])
    assert len(mixture.experts) == 1
    assert mixture.gate is None


@pytest.mark.parametrize(
    ("place", "widths"),
    [("input", {"input": 5}), ("common", {"common": 6}), ("both", {"input": 5, "common": 6})],
)
def test_the_modality_embedding_is_where_it_is_wanted_and_moves_the_result(place, widths):
    model = model_of(modality_embedding=place)
    embeddings = model.map_of(THERE).modality
    assert {name: len(p) for name, p in embeddings.items()} == widths
    before = model(THERE, rows(2, 5))["contrast"]
    for name in widths:
        embeddings[name].data.add_(1.0)
        after = model(THERE, rows(2, 5))["contrast"]
        assert not torch.allclose(before, after, atol=1e-3)
        before = after


def test_another_place_for_the_modality_embedding_is_refused():
    with pytest.raises(UsageError, match="modality_embedding 'output' is unknown; known: both"):
        model_of(modality_embedding="output")


def test_experts_are_shared_by_all_directions_or_each_has_its_own():
    shared, own = model_of(), model_of(share_experts=False)
    for model, moved in ((shared, True), (own, False)):
        model.zero_grad()
        model(THERE, rows(64, 5))["contrast"].sum().backward()
        stage: Any = model.stages[0]
        touched = {e.inner.weight.grad is not None for e in stage.mixture_of("text>image").experts}
        assert touched == {moved}


# Noise, dropout, balance ------------------------------------------------------------------


def test_noise_is_for_training_alone():
    plain, noisy = model_of(), model_of(noise=3.0)
    features = rows(64, 5)
    _, quiet = plain.with_routing(THERE, features)
    _, still = noisy.with_routing(THERE, features)
    assert torch.equal(quiet.shares, still.shares)
    _, moved = noisy.train().with_routing(THERE, features)
    assert not torch.equal(moved.chosen, still.chosen)


def test_dropout_is_for_training_alone():
    for changes in ({"dropout": 0.5}, {"dropout": 0.0, "feature_dropout": 0.5}):
        model, features = model_of(**changes), rows(64, 5)
        still = model(THERE, features)["contrast"]
        assert torch.equal(still, model(THERE, features)["contrast"])
        assert not torch.allclose(still, model.train()(THERE, features)["contrast"])


def test_the_balance_loss_is_one_where_all_are_used_alike_and_the_experts_number_where_one_is():
    alike = Routing(torch.full((4, 4), 0.25), torch.tensor([[0, 1], [2, 3], [0, 2], [1, 3]]))
    assert float(balance_loss(alike)) == pytest.approx(1.0)
    one = Routing(torch.eye(4)[[0, 0, 0]], torch.zeros(3, 1, dtype=torch.int64))
    assert float(balance_loss(one)) == pytest.approx(4.0)
    # Choices 3/4 and 1/4 of experts 0 and 1, mean shares 0.6 and 0.4: 2 (0.45 + 0.1).
    shares = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4], [0.2, 0.8]])
    uneven = Routing(shares, torch.tensor([[0], [0], [0], [1]]))
    assert float(balance_loss(uneven)) == pytest.approx(1.1)


def test_the_balance_loss_pulls_at_the_gate():
    model = model_of()
    _, routing = model.with_routing(THERE, rows(64, 5))
    balance_loss(routing).backward()
    stage: Any = model.stages[0]
    assert float(stage.shared().gate.weight.grad.abs().max()) > 0


# Stages -----------------------------------------------------------------------------------


def test_an_added_stage_passes_through_the_frozen_experts_and_has_none():
    model = with_audio(model_of(), grown=False)
    first, added = model.stages
    assert not [name for name in added.state_dict() if not name.startswith("maps.")]
    assert added.mixture_of("audio>text") is first.shared()
    model(ADDED[0], rows(64, 3))["contrast"].sum().backward()
    assert all(expert.inner.weight.grad is not None for expert in first.shared().experts)


def test_grown_experts_stand_beside_the_earlier_ones_which_are_not_in_their_state():
    model = with_audio(model_of(), grown=True)
    mixture = model.stages[1].shared()
    assert len(mixture.experts) == 3
    assert len(mixture.all_experts()) == mixture.gate.out_features == 4 + 3
    assert mixture.all_experts()[:4] == list(model.stages[0].shared().experts)
    names = {name for name in model.stages[1].state_dict() if "experts" in name}
    assert {name.split(".")[3] for name in names} == {"0", "1", "2"}
    _, routing = model.with_routing(ADDED[0], rows(64, 3))
    assert (torch.bincount(routing.chosen.flatten(), minlength=7) > 0).sum() > 4


def test_grown_experts_change_no_earlier_direction():
    model = model_of()
    before = model(THERE, rows(9, 5))["contrast"]
    path = model.path(THERE)
    with_audio(model, grown=True)
    assert torch.equal(model(THERE, rows(9, 5))["contrast"], before)
    assert model.path(THERE).keys() == path.keys()


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_can_grow(router):
    model = with_audio(model_of(router=router), grown=True, experts=4)
    for direction in ADDED:
        source, target = direction
        vectors = model(direction, rows(9, WIDTHS[source]), tasks=TASKS)
        assert vectors["contrast"].shape == (9, WIDTHS[target])


@pytest.mark.parametrize("router", ["fixed-modality", "grouped"])
def test_the_first_modalities_keep_their_experts_after_any_number_of_grown_ones(router):
    model = with_audio(model_of(router=router), grown=True, experts=2)
    earlier = [stage for stage in model.stages if isinstance(stage, MixtureStage)]
    wanted = dataclasses.replace(earlier[0].shape, experts=2)
    widths, added = {**WIDTHS, "video": 7}, [("video", "text"), ("text", "video")]
    model.stages.append(MixtureStage(widths, added, wanted, earlier=earlier, grown=True))
    assert model.open_to(("text", "video"), "contrast") == model.open_to(BACK, "contrast") == [2, 3]
    assert model.open_to(("video", "text"), "contrast") == [6, 7]


def test_text_keeps_its_experts_where_a_grown_modality_has_its_own():
    model = with_audio(model_of(router="fixed-modality"), grown=True, experts=2)
    chosen = [
        sorted(set(model.with_routing(d, rows(5, WIDTHS[d[0]]))[1].chosen.flatten().tolist()))
        for d in ADDED
    ]
    assert chosen == [[4, 5], [2, 3]]


@pytest.mark.parametrize("router", ["fixed-modality", "grouped"])
def test_frozen_experts_that_belong_to_modalities_take_no_new_one(router):
    with pytest.raises(UsageError, match=f"router {router}: .* audio has none .* added_experts"):
        with_audio(model_of(router=router), grown=False)


@pytest.mark.parametrize("router", ["fixed-modality", "fixed-skill", "grouped"])
def test_fewer_experts_than_groups_are_refused(router):
    names = "prediction, contrast" if router == "fixed-skill" else "image, text"
    with pytest.raises(UsageError, match=rf"1 experts for 2 groups \({names}\)"):
        model_of(router=router, experts=1, top_k=1)


def test_experts_of_tasks_are_as_many_for_each():
    with pytest.raises(UsageError, match=r"fixed-skill: 5 experts for 2 tasks .* a multiple of 2"):
        model_of(router="fixed-skill", experts=5)


def test_more_experts_a_row_than_there_are_is_refused():
    with pytest.raises(UsageError, match=r"top_k is 5, expected at most .* experts, 4; change"):
        model_of(top_k=5)
    own = model_of(share_experts=False)
    with pytest.raises(UsageError, match=r"top_k is 2, expected at most .* experts, 1; change"):
        with_audio(own, grown=True, experts=1)


def test_an_unknown_direction_lists_the_known():
    with pytest.raises(
        UsageError, match="direction 'text>audio' is unknown; known: image>text, text>image"
    ):
        model_of()(("text", "audio"), rows(1, 7))


@pytest.mark.parametrize("name", ["image", "image>", ">text", "image-text", "text>text", ""])
def test_what_is_no_direction_says_how_one_is_written(name):
    with pytest.raises(UsageError, match=r"expected SOURCE>TARGET, two modalities"):
        named_direction(name)


def test_a_directions_path_holds_its_own_map_and_all_its_experts():
    model = with_audio(model_of(), grown=True)
    sizes = {
        direction: sum(tensor.numel() for tensor in model.path(direction).values())
        for direction in (THERE, ADDED[0])
    }
    first, added = model.stages
    figures = 2 * 5, 2 * 3  # mean and deviation of the features, which are no parameters
    own = count(model.map_of(THERE)) + figures[0]
    assert sizes[THERE] == own + count(first.shared())
    assert sizes[ADDED[0]] == (
        count(model.map_of(ADDED[0])) + figures[1] + count(added.shared()) + count(first.shared())
    )


# Alternation ------------------------------------------------------------------------------


def test_round_robin_takes_directions_in_turn_and_each_its_batches_in_order():
    turns = [Alternation("round-robin", 3, seed=0).turns(step) for step in range(7)]
    assert turns == [[(0, 0)], [(1, 0)], [(2, 0)], [(0, 1)], [(1, 1)], [(2, 1)], [(0, 2)]]


def test_joint_takes_all_in_every_step():
    assert Alternation("joint", 3, seed=0).turns(5) == [(0, 5), (1, 5), (2, 5)]


def test_random_is_a_function_of_seed_and_step():
    def drawn(seed: int) -> list[list[tuple[int, int]]]:
        return [Alternation("random", 3, seed=seed).turns(step) for step in range(300)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    places = [turn[0][0] for turn in drawn(1)]
    assert [turn[0][1] for turn in drawn(1)] == list(range(300))
    assert np.bincount(places, minlength=3) == pytest.approx([100, 100, 100], abs=30)


def test_random_does_not_look_at_losses():
    schedule = Alternation("random", 2, seed=0)
    before = [schedule.turns(step) for step in range(50)]
    schedule.note(0, 8.0)
    schedule.note(0, 0.1)
    assert [schedule.turns(step) for step in range(50)] == before


def noted(*losses: tuple[int, float], count: int = 2) -> Alternation:
    schedule = Alternation("adaptive", count, seed=0)
    for place, loss in losses:
        schedule.note(place, loss)
    return schedule


def test_adaptive_prefers_the_direction_with_more_of_its_loss_left():
    # The running mean of a tenth new: 10 then 0 leaves 9, 4 then 4 leaves 4.
    schedule = noted((0, 10.0), (0, 0.0), (1, 4.0), (1, 4.0))
    assert schedule.shares() == pytest.approx([0.9 / 1.9, 1 / 1.9])
    learnt = noted(*[(0, 8.0), *[(0, 0.0)] * 200], (1, 1.0))
    assert learnt.shares() == pytest.approx([0.05 / 1.05, 1 / 1.05])
    places = [learnt.turns(step)[0][0] for step in range(200)]
    assert 0 < places.count(0) < 30


def test_adaptive_takes_one_that_was_never_drawn_as_if_all_were_left():
    assert noted((0, 3.0), (0, 3.0)).shares() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("loss", [0.0, math.inf, math.nan])
def test_adaptive_bears_a_loss_that_has_no_share(loss):
    schedule = noted((0, loss), (0, 1.0), (0, loss))
    assert schedule.shares() == pytest.approx([0.5, 0.5], abs=0.1)
    assert schedule.turns(3)[0][0] in (0, 1)


def test_what_a_schedule_remembers_survives_json():
    schedule = noted((0, 0.1), (0, 0.7), (2, 1 / 3), count=3)
    again = Alternation("adaptive", 3, seed=0)
    again.restore(json.loads(json.dumps(schedule.state())))
    for both in (schedule, again):
        both.note(0, 0.2)
    assert [again.turns(step) for step in range(99)] == [schedule.turns(s) for s in range(99)]
    assert json.dumps(again.state()) == json.dumps(schedule.state())


def test_an_unknown_schedule_lists_the_known():
    with pytest.raises(UsageError, match="alternation 'turns' is unknown; known: adaptive, joint"):
        Alternation("turns", 2, seed=0)


# The prediction loss ----------------------------------------------------------------------

PREDICTED = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
WANTED = torch.tensor([[1.0, 0.0, 0.5], [0.0, 4.0, 0.0]])


@pytest.mark.parametrize(
    ("kind", "reduction", "expected"),
    [
        # Squares: 0 + 4 + 0.25, and 0 + 16 + 9.
        ("l2", "sum", (4.25 + 25) / 2),
        ("l2", "mean", (4.25 / 3 + 25 / 3) / 2),
        # Halves of squares below 1, else the difference less a half: 1.5 + 0.125, 3.5 + 2.5.
        ("smooth-l1", "sum", (1.625 + 6) / 2),
        ("smooth-l1", "mean", (1.625 / 3 + 6 / 3) / 2),
        # 1 / (sqrt 5 x sqrt 1.25) = 0.4, and orthogonal.
        ("cosine", "mean", (0.6 + 1) / 2),
        ("cosine", "sum", (0.6 + 1) / 2),
    ],
)
def test_the_prediction_loss_by_hand(kind, reduction, expected):
    found = prediction_loss(PREDICTED, WANTED, kind=kind, reduction=reduction)
    assert float(found) == pytest.approx(expected)


def test_rows_of_another_shape_are_not_compared():
    with pytest.raises(ShapeError, match=r"predicted \(2, 3\) and wanted \(2, 2\) differ"):
        prediction_loss(PREDICTED, WANTED[:, :2], kind="l2", reduction="mean")


def test_unknown_prediction_losses_and_reductions_list_the_known():
    with pytest.raises(UsageError, match="prediction loss 'l1' is unknown; known: cosine, l2"):
        prediction_loss(PREDICTED, WANTED, kind="l1", reduction="mean")
    with pytest.raises(UsageError, match="reduction 'none' is unknown; known: mean, sum"):
        prediction_loss(PREDICTED, WANTED, kind="l2", reduction="none")
