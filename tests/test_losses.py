"""Losses against the papers' formulas in loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from modalign.errors import ShapeError, UsageError
from modalign.losses import bank_info_nce, directed_info_nce, info_nce


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
