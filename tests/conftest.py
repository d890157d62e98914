"""Fixtures shared by the whole suite."""

import logging
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Time limits belong to no test, and a failure must come back when it is looked for.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have caplog see Lightning's messages, whatever handlers the root logger had when it was imported."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """The root of a small excerpt of COCO 2017 in COCO's own layout."""
    root = Path(os.environ.get("COCO_MINI", REPOSITORY.parent / "shared" / "coco-mini"))
    if not (root / "annotations" / "instances_val2017.json").is_file():
        pytest.skip(f"no COCO excerpt at {root}; set COCO_MINI to its folder")
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
