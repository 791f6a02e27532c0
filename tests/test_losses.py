"""Losses against the papers' formulas in loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modalign.errors import ShapeError, UsageError
from modalign.losses import (
    alignment,
    bank_info_nce,
    directed_info_nce,
    distribution_matching,
    info_nce,
    latent_mixup,
    n_way_info_nce,
    neighbourhood_loss,
    one_pass_info_nce,
    product_of,
    sigmoid_loss,
    uniformity,
)


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=-1)


def slow_half(u, v, positives, temperature):
    total = 0.0
    for i in range(len(u)):
        e = [math.exp(float(u[i] @ v[j]) / temperature) for j in range(len(v))]
        partners = [j for j in range(len(v)) if positives[i, j]]
        negatives = sum(e[j] for j in range(len(v)) if not positives[i, j])
        total += sum(-math.log(e[p] / (e[p] + negatives)) for p in partners) / len(partners)
    return total / len(u)


def slow_info_nce(u, v, positives, temperature):
    there = slow_half(u, v, positives, temperature)
    return (there + slow_half(v, u, positives.T, temperature)) / 2


def test_one_positive_a_row_is_the_papers_cross_entropy():
    u, v = unit(5, 7, 0), unit(5, 7, 1)
    logits = u @ v.T * math.exp(2.5)
    labels = torch.arange(5)
    paper = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    ours = info_nce(u, v, torch.eye(5, dtype=torch.bool), math.exp(-2.5))
    assert float(ours) == pytest.approx(float(paper), rel=1e-6)


def test_many_positives_agree_with_the_formula_in_loops():
    u, v = unit(4, 6, 2), unit(5, 6, 3)
    positives = torch.tensor(
        [[1, 1, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]], dtype=torch.bool
    )
    assert float(info_nce(u, v, positives, 0.1)) == pytest.approx(
        slow_info_nce(u, v, positives, 0.1), rel=1e-6
    )


def test_two_captions_of_one_photo_do_not_push_each_other_away():
    photos = unit(2, 6, 4)[[0, 0, 1]]
    captions = unit(3, 6, 5).requires_grad_()
    same_photo = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    info_nce(photos[:2], captions[:2], same_photo[:2, :2], 0.1).backward()
    assert captions.grad is not None
    assert float(captions.grad.abs().max()) == 0.0


def test_the_bank_of_a_whole_batch_is_half_of_the_symmetric_loss():
    u, bank = unit(4, 6, 6).float(), unit(9, 6, 7).float()
    positives = torch.zeros(4, 9, dtype=torch.bool)
    rows, columns = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([3, 5, 5, 0, 8])
    positives[rows, columns] = True
    ours = bank_info_nce(u, bank, rows, columns, temperature=0.07)
    assert float(ours) == pytest.approx(slow_half(u, bank, positives, 0.07), rel=1e-5)


@pytest.mark.parametrize("block", [2, 4, 100])
def test_the_banks_gradient_is_autograds_whatever_the_block(block):
    bank = unit(9, 6, 8).float()
    rows, columns = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([3, 5, 5, 0, 8])
    positives = torch.zeros(4, 9, dtype=torch.bool)
    positives[rows, columns] = True
    u = unit(4, 6, 9).float().requires_grad_()
    (3 * bank_info_nce(u, bank, rows, columns, temperature=0.07, block=block)).backward()
    twin = u.detach().clone().requires_grad_()
    (3 * directed_info_nce(twin, bank, positives, 0.07)).backward()
    torch.testing.assert_close(u.grad, twin.grad, rtol=1e-4, atol=1e-6)


def test_a_bank_without_negatives_costs_nothing_and_gives_no_nan():
    u = unit(2, 3, 0).float().requires_grad_()
    bank = unit(1, 3, 1).float()
    loss = bank_info_nce(u, bank, torch.tensor([0, 1]), torch.tensor([0, 0]), temperature=0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert u.grad is not None
    assert float(u.grad.abs().max()) == 0.0


def test_a_row_without_a_positive_is_refused():
    u, v = unit(2, 3, 0), unit(2, 3, 1)
    with pytest.raises(UsageError, match="no positive"):
        info_nce(u, v, torch.tensor([[True, True], [False, False]]), 0.1)
    with pytest.raises(UsageError, match="no positive in the bank"):
        bank_info_nce(u, v, torch.tensor([0]), torch.tensor([0]), temperature=0.1)


def test_positives_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match=r"\(3, 2\), expected \(2, 2\)"):
        info_nce(unit(2, 3, 0), unit(2, 3, 1), torch.ones(3, 2, dtype=torch.bool), 0.1)


MANY = torch.tensor(
    [[1, 1, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]], dtype=torch.bool
)


# One pass


@pytest.mark.parametrize("temperature", [0.026, 0.1, 3.0])
def test_one_pass_gives_the_gradients_of_the_two_softmaxes(temperature):
    found = []
    for loss in (one_pass_info_nce, both_directions):
        u, v = unit(4, 6, 2).requires_grad_(), unit(5, 6, 3).requires_grad_()
        t = torch.tensor(temperature, requires_grad=True)
        value = loss(u, v, MANY, t)
        (2 * value).backward()
        found.append((value.detach(), u.grad, v.grad, t.grad))
    for ours, twin in zip(*found, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-5, atol=1e-7, check_dtype=False)


def both_directions(u, v, positives, temperature):
    there = directed_info_nce(u, v, positives, temperature)
    return (there + directed_info_nce(v, u, positives.T, temperature)) / 2


def test_a_low_temperature_takes_the_safe_path():
    u = F.normalize(torch.tensor([[1.0, 0.0], [-1.0, 1e-3]]), dim=-1)
    same = torch.eye(2, dtype=torch.bool)
    # exp(-2 / 0.01) is 0 in float32: one pass would say that nothing is left to learn.
    worst = info_nce(u, -u, same, 0.01)
    assert float(worst) == pytest.approx(200, rel=1e-3)
    assert float(info_nce(u, u, same, 0.01)) == pytest.approx(0, abs=1e-6)


def test_one_pass_of_rows_without_negatives_costs_nothing_and_gives_no_nan():
    u = unit(2, 3, 0).float().requires_grad_()
    loss = one_pass_info_nce(u, unit(2, 3, 1).float(), torch.ones(2, 2, dtype=torch.bool), 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert u.grad is not None
    assert float(u.grad.abs().max()) == 0.0


# Each pair by itself, and whole distributions


def test_the_sigmoid_loss_agrees_with_the_formula_in_loops():
    u, v = unit(4, 6, 2), unit(5, 6, 3)
    total = 0.0
    for i in range(4):
        for j in range(5):
            z = 1 if MANY[i, j] else -1
            total -= math.log(1 / (1 + math.exp(-z * (float(u[i] @ v[j]) / 0.1 - 1.5))))
    assert float(sigmoid_loss(u, v, MANY, 0.1, -1.5)) == pytest.approx(total / 4, rel=1e-6)


def test_distribution_matching_agrees_with_the_formula_in_loops():
    u, v = unit(4, 6, 2), unit(5, 6, 3)

    def half(a, b, positives):
        total = 0.0
        for i in range(len(a)):
            e = [math.exp(float(a[i] @ b[j]) / 0.1) for j in range(len(b))]
            for j in range(len(b)):
                q = float(positives[i, j]) / int(positives[i].sum())
                total += e[j] / sum(e) * math.log(e[j] / sum(e) / (q + 1e-8))
        return total / len(a)

    wanted = (half(u, v, MANY) + half(v, u, MANY.T)) / 2
    assert float(distribution_matching(u, v, MANY, 0.1)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("loss", [distribution_matching, lambda *a: sigmoid_loss(*a, 0.0)])
def test_positives_that_do_not_fit_are_refused_by_every_loss(loss):
    with pytest.raises(ShapeError, match=r"\(3, 2\), expected \(2, 2\)"):
        loss(unit(2, 3, 0), unit(2, 3, 1), torch.ones(3, 2, dtype=torch.bool), 0.1)


# Three and more modalities


# Rows 0 and 1 have one second item, rows 0 and 2 one third; the last number is no item.
ITEMS = torch.tensor([[0, 4, 7], [1, 4, 8], [2, 9, 7], [9, 5, 6], [9, 9, 3]])


@pytest.mark.parametrize("items", [None, ITEMS])
def test_n_way_agrees_with_the_formula_in_loops_where_modalities_are_missing(items):
    vectors = [unit(5, 7, seed) for seed in range(3)]
    present = torch.tensor(
        [[1, 1, 1], [1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1]], dtype=torch.bool
    )
    losses = []
    for m in range(3):
        rows = [i for i in range(5) if present[i, m] and present[i].sum() > 1]
        queries = []
        for i in rows:
            product = np.ones(7)
            for k in range(3):
                if k != m and present[i, k]:
                    product = product * vectors[k][i].numpy()
            queries.append(product / np.linalg.norm(product))
        u = torch.tensor(np.array(queries))
        same = torch.tensor(
            [
                [i == j or (items is not None and items[i, m] == items[j, m]) for j in rows]
                for i in rows
            ]
        )
        losses.append(slow_info_nce(u, vectors[m][rows], same, 0.1))
    ours = n_way_info_nce(vectors, present, 0.1, items=items)
    assert float(ours) == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_two_modalities_in_an_n_way_loss_are_info_nce():
    u, v = unit(4, 6, 0), unit(4, 6, 1)
    ours = n_way_info_nce([u, v], torch.ones(4, 2, dtype=torch.bool), 0.1)
    assert float(ours) == pytest.approx(
        float(info_nce(u, v, torch.eye(4, dtype=torch.bool), 0.1)), rel=1e-6
    )


def test_n_way_without_a_row_of_two_modalities_is_zero():
    vectors = [unit(2, 3, seed).requires_grad_() for seed in range(3)]
    loss = n_way_info_nce(vectors, torch.eye(3, dtype=torch.bool)[:2], 0.1)
    loss.backward()
    assert loss.item() == 0.0


def test_n_way_refuses_widths_that_differ():
    with pytest.raises(ShapeError, match=r"\(2, 3\), \(2, 4\)"):
        n_way_info_nce([unit(2, 3, 0), unit(2, 4, 0)], torch.ones(2, 2, dtype=torch.bool), 0.1)


BITS = 3


def drawn_xor(rows: int, seed: int) -> list[torch.Tensor]:
    """Return two drawn codes of bits and their exclusive or, each with noise around +-1."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(0, 2, (rows, BITS), generator=generator) for _ in range(2))
    return [
        2.0 * code - 1 + 0.1 * torch.randn(rows, BITS, generator=generator)
        for code in (first, second, first ^ second)
    ]


def networks_trained_by(loss) -> list[torch.nn.Module]:
    torch.manual_seed(0)
    networks = [
        torch.nn.Sequential(torch.nn.Linear(BITS, 32), torch.nn.GELU(), torch.nn.Linear(32, 16))
        for _ in range(3)
    ]
    optimizer = torch.optim.Adam([p for n in networks for p in n.parameters()], lr=5e-3)
    for step in range(200):
        drawn = drawn_xor(64, seed=step)
        vectors = [F.normalize(n(x), dim=-1) for n, x in zip(networks, drawn, strict=True)]
        optimizer.zero_grad()
        loss(vectors).backward()
        optimizer.step()
    return networks


def right_bits(networks, joined) -> float:
    """Return the share of queries by two codes whose closest item has the third code."""
    drawn = drawn_xor(256, seed=999)
    with torch.no_grad():
        first, second, third = (
            F.normalize(n(x), dim=-1) for n, x in zip(networks, drawn, strict=True)
        )
    closest = (joined(first, second) @ third.T).argmax(1)
    return float((drawn[2].sign() == drawn[2].sign()[closest]).all(1).float().mean())


def test_n_way_learns_what_no_two_modalities_tell_and_pairs_do_not():
    present = torch.ones(64, 3, dtype=torch.bool)
    same = torch.eye(64, dtype=torch.bool)

    def pairwise(vectors):
        return sum(info_nce(vectors[a], vectors[b], same, 0.1) for a, b in ((0, 1), (0, 2), (1, 2)))

    by_tuples = networks_trained_by(lambda vectors: n_way_info_nce(vectors, present, 0.1))
    by_pairs = networks_trained_by(pairwise)
    both = torch.ones(256, 2, dtype=torch.bool)
    assert right_bits(by_tuples, lambda a, b: product_of([a, b], both)) > 0.9
    # Chance is 1 in 8.
    assert right_bits(by_pairs, lambda a, b: a + b) < 0.35
    assert right_bits(by_pairs, lambda a, b: product_of([a, b], both)) < 0.35


# Regularisers


def test_uniformity_and_alignment_agree_with_their_formulas_in_loops():
    u, v = unit(4, 6, 2), unit(5, 6, 3)
    apart = [math.exp(-2 * float((u[i] - v[j]).square().sum())) for i, j in (~MANY).nonzero()]
    near = [float((u[i] - v[j]).square().sum()) for i, j in MANY.nonzero()]
    spread = float(uniformity(u, v, ~MANY))
    assert spread == pytest.approx(math.log(sum(apart) / len(apart)), rel=1e-6)
    assert float(alignment(u, v, MANY)) == pytest.approx(sum(near) / len(near), rel=1e-6)


def test_uniformity_of_nothing_apart_is_zero():
    u = unit(2, 3, 0).requires_grad_()
    loss = uniformity(u, u, torch.zeros(2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0


def test_a_neighbourhood_that_is_kept_costs_nothing():
    features = unit(6, 9, 0)
    turned = 3.0 * features @ torch.linalg.qr(unit(9, 9, 1)).Q + 0.5
    kept = neighbourhood_loss(features, turned, temperature=0.1, levels=3)
    assert float(kept) == pytest.approx(0, abs=1e-6)


def test_the_neighbourhood_loss_agrees_with_its_formula_in_loops():
    features, vectors = unit(4, 9, 0), unit(4, 5, 1)

    def walk(rows):
        x = rows.numpy() - rows.numpy().mean(0)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        e = np.exp(x @ x.T / 0.2)
        return e / e.sum(1, keepdims=True)

    p, q = walk(features), walk(vectors)
    total = 0.0
    for level in (1, 2):
        a, b = np.linalg.matrix_power(p, level), np.linalg.matrix_power(q, level)
        for i in range(4):
            for j in range(4):
                middle = (a[i, j] + b[i, j]) / 2
                both = a[i, j] * math.log(a[i, j] / middle) + b[i, j] * math.log(b[i, j] / middle)
                total += both / 2 / 4 / level
    found = neighbourhood_loss(features, vectors, temperature=0.2, levels=2)
    assert float(found) == pytest.approx(total / 2, rel=1e-5)


def test_mixup_mixes_both_modalities_by_one_share_and_keeps_what_belongs_together():
    first, second = unit(3, 4, 0), unit(3, 5, 1)
    same_photo = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    partner = torch.tensor([2, 2, 0])
    a, b, positives = latent_mixup(first, second, same_photo, partner=partner, share=0.75)
    for i in range(3):
        torch.testing.assert_close(a[i], 0.75 * first[i] + 0.25 * first[partner[i]])
        torch.testing.assert_close(b[i], 0.75 * second[i] + 0.25 * second[partner[i]])
    # Rows 0 and 1 are of one photo, and so are what they are mixed with.
    assert positives.tolist() == same_photo.tolist()
    apart = latent_mixup(first, second, same_photo, partner=torch.tensor([2, 1, 0]), share=0.5)[2]
    assert apart.tolist() == torch.eye(3, dtype=torch.bool).tolist()


def test_mixup_refuses_partners_of_another_number():
    with pytest.raises(ShapeError, match="3 and 3 rows, 2 partners"):
        latent_mixup(
            unit(3, 4, 0),
            unit(3, 5, 1),
            torch.eye(3, dtype=torch.bool),
            partner=torch.tensor([0, 1]),
            share=0.5,
        )
