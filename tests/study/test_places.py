import os

import pytest
import torch

from fpn.study.places import places


def test_every_run_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    one = [place["CUDA_VISIBLE_DEVICES"] for place in places()]
    assert one == ["0", "1", "2", "3", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,3,GPU-ab,2,1")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places(None, 2)] == ["7,3", "GPU-ab,2"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places(1, 2)] == ["7,3"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places(None, 0)] == [""]
    for jobs, devices, part in [
        (3, 2, "need 6"),
        (None, 6, "5 GPUs"),
        (0, 1, "at least"),
        (1, -1, "at least"),
    ]:
        with pytest.raises(ValueError, match=part):
            places(jobs, devices)


def test_runs_on_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert places() == [{}]
    assert places(2) == 2 * [{"OMP_NUM_THREADS": "3"}]
    assert places(9) == 9 * [{"OMP_NUM_THREADS": "1"}]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert places(2) == [{}, {}]
    with pytest.raises(ValueError, match="0 GPUs"):
        places(None, 2)


def test_a_system_that_tells_no_affinity_tells_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert places(2) == 2 * [{"OMP_NUM_THREADS": "4"}]
