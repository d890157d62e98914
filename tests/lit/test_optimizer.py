"""Learning rates of their own for parts of the detector."""

import copy
import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lit_runs import kept
from torch import nn

from fpn.lit.cli import main
from fpn.lit.optimizer import by_part, scale

RUNS = Path("runs/tiny")


@pytest.mark.parametrize("factory", [partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam])
def test_a_part_learns_at_its_own_rate(factory: Any) -> None:
    """As with an optimiser of its own."""
    torch.manual_seed(0)
    network = nn.ModuleDict({part: nn.Linear(3, 3) for part in ("bottom_up", "neck", "rpn")})
    network["rpn"].requires_grad_(False)
    alone = copy.deepcopy(network)
    factors = {"bottom_up": 0.1, "rpn": 2.0}
    one = by_part(partial(factory, lr=0.5), network, factors)
    scale(one, factors)
    several = [factory(alone["bottom_up"].parameters(), lr=0.05), factory(alone["neck"].parameters(), lr=0.5)]
    assert len(one.param_groups) == 2
    x = torch.rand(5, 3)
    for net, optimizers in ((network, [one]), (alone, several)):
        for _ in range(3):
            net["rpn"](net["neck"](net["bottom_up"](x))).square().sum().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for mine, theirs in zip(network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_factors_are_logged_and_go_on(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["fit", "--config", config, "--model.lr_factors", "{bottom_up: 0.1}"]
    main(given)
    with (RUNS / "version_0/metrics.csv").open() as file:
        rates = [row for row in csv.DictReader(file) if row["lr-PaperSGD/bottom_up"]]
    assert rates
    for row in rates:
        assert float(row["lr-PaperSGD/bottom_up"]) == pytest.approx(0.1 * float(row["lr-PaperSGD/pg1"]))
    last = ["--model.schedule.steps", "6", "--ckpt_path", str(RUNS / "version_0/checkpoints/last.ckpt")]
    main([*given, *last])
    assert kept(RUNS / "version_1", "last")["global_step"] == 6
    capsys.readouterr()
    for factors, message in (
        (
            "{bottom_up: 0.2}",
            "model.lr_factors {'bottom_up': 0.1}, this run has {'bottom_up': 0.2}: ",
        ),
        ("{bottomup: 0.1}", "lr_factors: this detector has no 'bottomup'; it has bottom_up, neck, rpn, "),
        ("{neck: 0}", "lr_factors is {'neck': 0}: give a number above 0"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["fit", "--config", config, *last, "--model.lr_factors", factors])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_ways_to_be_quick_on_a_gpu_are_options(config: str) -> None:
    """They change no more than rounding, and a run goes on without them."""
    given = ["fit", "--config", config, "--trainer.deterministic", "true"]
    main(given)
    quick = ["--model.optimizer.fused", "true", "--model.channels_last", "true"]
    main([*given, *quick])
    torch.use_deterministic_algorithms(False)
    assert not torch.utils.deterministic.fill_uninitialized_memory
    one, other = (kept(RUNS / run, "last")["state_dict"] for run in ("version_0", "version_1"))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-4)
    last = str(RUNS / "version_1/checkpoints/last.ckpt")
    main(["fit", "--config", config, "--model.schedule.steps", "6", "--ckpt_path", last])
    assert kept(RUNS / "version_2", "last")["global_step"] == 6
