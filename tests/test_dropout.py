"""Dropout by the byte: its share, its scale, its determinism."""

import pytest
import torch

from modalign.connectors.dropout import Dropout, kept_bytes


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_the_share_is_dropped_and_the_mean_kept(share):
    torch.manual_seed(0)
    dropped = Dropout(share).train()(torch.ones(1000, 1001))
    assert (dropped == 0).float().mean().item() == pytest.approx(share, abs=0.004)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)


def test_every_byte_of_a_word_is_drawn_evenly():
    torch.manual_seed(0)
    kept = kept_bytes(torch.empty(100_000, 8), 128).float().mean(0)
    assert kept.tolist() == pytest.approx([0.5] * 8, abs=0.01)


def test_the_same_seed_drops_the_same_and_another_does_not():
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        masks.append(Dropout(0.5).train()(torch.ones(50, 3)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_eval_mode_and_a_share_of_nothing_change_nothing():
    x = torch.ones(3)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


def test_the_gradient_flows_through_what_is_kept():
    torch.manual_seed(0)
    x = torch.ones(64, requires_grad=True)
    dropped = Dropout(0.5).train()(x)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())
