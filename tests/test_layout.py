"""Imports point one way, and nothing but its one home imports Lightning or W&B."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "fpn"

NETWORK = {"models.bottom_up", "models.timm_bottom_up", "models.resnet", "models.norms", "models.msra"} | {
    "models.necks",
    "models.mobilenet",
    "models.rpn",
    "models.roi_head",
}
CRITERIA = {"models.targets", "models.losses", "models.postprocess"}
GROUND = {
    "types",
    "settings",
    "errors",
    "described",
    "torch_private",
    "importing",
    "console",
    "trust",
    "weights",
    "devices",
    "files",
    "palette",
    "parsing",
    "shipped",
    "words",
}

# What a module may import of the project, by the longest prefix that fits its name.
ALLOWED: dict[str, set[str]] = {
    "types": {"errors"},
    "errors": set(),
    "torch_private": set(),
    "described": {"errors", "console", "importing", "parsing", "trust"},
    "importing": {"errors"},
    "console": {"errors"},
    "files": set(),
    "palette": set(),
    "weights": {"errors"},
    "settings": set(),
    "trust": {"errors", "parsing"},
    "parsing": {"errors"},
    "shipped": {"errors", "console"},
    "words": {"errors"},
    "devices": {"errors"},
    "ops": {"ops"},
    **{name: GROUND | {"ops"} | NETWORK for name in NETWORK},
    **{name: GROUND | {"ops"} | CRITERIA for name in CRITERIA},
    "models.detectors": GROUND | {"ops", "models"},
    "models.cascade": GROUND | {"ops", "models"},
    "lightning_private": set(),
    "data.loader": GROUND | {"ops", "data", "allocator"},
    "data.datamodule": GROUND | {"ops", "data", "lightning_private"},
    "data": GROUND | {"ops", "data"},
    "evaluation": GROUND | {"ops", "evaluation", "data.coco_file", "data.entries", "data.fields"},
    "study": GROUND | {"models", "checkpoints", "study"},
    # Tables of a report.
    "study.commands": GROUND | {"models", "checkpoints", "study", "lit.wandb"},
    "pictures": GROUND,
    "report": GROUND | {"ops", "data", "evaluation", "pictures", "report"},
    "interop": GROUND | {"ops", "models", "data", "shipped", "interop"},
    "stage_times": GROUND | {"models.detectors"},
    "checkpoints": GROUND | {"ops", "models", "data", "interop"},
    "prediction": GROUND | {"data", "pictures"},
    "predictor": GROUND | {"ops", "models", "data", "checkpoints", "prediction"},
    "deploy": GROUND | {"ops", "models", "data", "checkpoints", "deploy"},
    "deploy.onnx_predictor": {"errors", "files"},
    "": {""},  # lit and the package itself see all
}
ONLY_IN = {
    "lightning": ("lit", "data.datamodule", "lightning_private"),
    "wandb": ("lit.wandb",),
    "pycocotools": ("evaluation", "data.entries"),
}


def modules() -> dict[str, Path]:
    paths = SOURCE.rglob("*.py")
    return {".".join(p.relative_to(SOURCE).with_suffix("").parts): p for p in paths if p.stem != "__init__"}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def within(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_one_way(name: str) -> None:
    rule = max((prefix for prefix in ALLOWED if within(name, prefix)), key=len)
    for other in imported(modules()[name]):
        package, _, rest = other.partition(".")
        if package == "fpn":
            assert any(within(rest, prefix) for prefix in ALLOWED[rule]), f"{name} imports {other}"
        elif package in ONLY_IN:
            assert any(within(name, home) for home in ONLY_IN[package]), f"{name} imports {other}"


def test_no_file_without_a_docstring() -> None:
    for name, path in modules().items():
        assert ast.get_docstring(ast.parse(path.read_text())), name
