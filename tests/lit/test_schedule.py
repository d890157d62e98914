import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR

from fpn.lit.optimizer import PaperSGD
from fpn.lit.schedule import Schedule


def test_the_papers_schedule_by_hand() -> None:
    schedule = Schedule()
    assert schedule.factor(0) == pytest.approx(0.001)
    assert schedule.factor(250) == pytest.approx(0.5005)
    assert [schedule.factor(s) for s in (500, 59_999)] == [1, 1]
    assert [schedule.factor(s) for s in (60_000, 79_999)] == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize(("images", "factor"), [(2, 8), (4, 4), (16, 1), (32, 0.5)])
def test_the_same_images_are_seen_at_the_same_rate_per_image(images: int, factor: float) -> None:
    one = Schedule()
    optimizer = PaperSGD([nn.Parameter(torch.zeros(1))])
    other, scheduler = one.attach(optimizer, images)
    assert scheduler.base_lrs == pytest.approx([0.02 / factor])
    assert other.steps == one.steps * factor
    assert other.milestones == (60_000 * factor,)
    assert other.warmup_steps == 500 * factor
    assert other.steps * images == one.steps * 16
    assert other.at(16) == one


def test_learning_rates_are_those_of_pytorchs_own_schedulers() -> None:
    schedule = Schedule(steps=40, milestones=(20, 30), warmup_steps=8, warmup_factor=0.25)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = PaperSGD([weight], 0.1)
    _, ours = schedule.attach(optimizer, 16)
    peer = torch.optim.SGD([weight], 0.1)
    warmup = LinearLR(peer, 0.25, total_iters=8)
    drops = MultiStepLR(peer, [20 - 8, 30 - 8], 0.1)
    theirs = SequentialLR(peer, [warmup, drops], [8])
    for _ in range(40):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(peer.param_groups[0]["lr"])
        optimizer.step()
        peer.step()
        ours.step()
        theirs.step()


@pytest.mark.parametrize("warmup", [0, 8])
def test_the_cosine_is_pytorchs_own(warmup: int) -> None:
    schedule = Schedule(steps=40, warmup_steps=warmup, warmup_factor=0.25, cosine=True)
    weight = nn.Parameter(torch.zeros(1))
    optimizer, peer = PaperSGD([weight], 0.1), torch.optim.SGD([weight], 0.1)
    _, ours = schedule.attach(optimizer, 16)
    cosine = CosineAnnealingLR(peer, 40 - warmup)
    begins = LinearLR(peer, 0.25, total_iters=warmup) if warmup else None
    theirs = SequentialLR(peer, [begins, cosine], [warmup]) if begins else cosine
    for _ in range(41):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(peer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        peer.step()
        ours.step()
        theirs.step()


def test_the_cosine_by_hand() -> None:
    schedule = Schedule(steps=1000, warmup_steps=200, warmup_factor=0.5, cosine=True)
    steps = (0, 100, 200, 400, 600, 800, 1000, 1500)
    expected = [0.5, 0.75, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0, 0]
    assert [schedule.factor(step) for step in steps] == pytest.approx(expected)
    assert Schedule(steps=1000, warmup_steps=200, epochs=3, cosine=True).lasting(4, 50).at(4).factor(90) == (
        pytest.approx(Schedule(steps=150, warmup_steps=30, cosine=True).factor(90))
    )
    assert str(schedule).endswith("warm-up of 200, learning rate down to 0 by half a cosine")


def test_what_is_printed() -> None:
    assert str(Schedule().at(2)) == (
        "640,000 steps of 2 images, warm-up of 4,000, learning rate times 0.1 at 480,000"
    )
