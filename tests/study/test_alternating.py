"""Table 5's four steps by the real commands, tiny: what each starts from, what it trains, what comes out."""

import json
import os
from pathlib import Path

import pytest
import torch

from fpn.checkpoints import load, start_from
from fpn.data.shapes import generate_shapes
from fpn.errors import InputError
from fpn.lit.cli import main
from fpn.study.rows import plan

pytestmark = pytest.mark.long

GIVEN = {
    "data.train_count": 4,
    "data.val_count": 3,
    "data.long_side": 96,
    "data.folder": "shapes",
    "data.batch_size": 2,
    "data.eval_batch_size": 1,
    "data.num_workers": 0,
    "model.schedule.steps": 3,
    "model.schedule.length": 1,
    "model.schedule.reference_images": 2,
    "model.schedule.warmup_steps": 0,
    "model.detector.bottom_up.name": "resnet18",
    "model.detector.bottom_up.width": 8,
    "trainer.num_sanity_val_steps": 0,
    "trainer.accelerator": "cpu",
}
STEPS = {
    "table5/resnet50_unshared/seed_0/1_rpn": "1_rpn",
    "table5/resnet50_unshared/seed_0": "2_fast_rcnn",
    "table5/resnet50_shared/seed_0/3_rpn": "3_rpn",
    "table5/resnet50_shared/seed_0/4_fast_rcnn": "4_fast_rcnn",
    "table5/resnet50_shared/seed_0": "",
}
# One that both halves have, too low for a proposal of any score to be left out.
DETECTIONS = ["--model.detector.detections.score_threshold", "0.0"]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the four steps, and under "" that of what was joined."""
    root = tmp_path_factory.mktemp("alternating")
    before = Path.cwd()
    os.chdir(root)
    try:
        generate_shapes(Path("shapes"), train=4, val=3, long_side=96)
        given = [word for key, value in GIVEN.items() for word in (f"--{key}", str(value))]
        folders = {}
        for task in plan(["table5"], ["resnet50_shared"], data="shapes", out="study", given=given):
            folder = Path("study", task.name)
            for step in task.steps:
                words = list(step.words)
                if step.name in ("fit", "test") and ("fast_rcnn" in task.name or task.about):
                    words += DETECTIONS
                if step.name == "test" and task.steps[0].name == "join":
                    words = [word for word in words if word not in given] + DETECTIONS
                main(words)
                for name in step.results:
                    newest = max(
                        folder.glob(f"version_*/**/{name}"), key=lambda path: path.stat().st_mtime_ns
                    )
                    (folder / name).write_bytes(newest.read_bytes())
            folders[STEPS[task.name]] = root / folder
    finally:
        os.chdir(before)
    return folders


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load(folder / name).detector.state_dict()
    return state


def test_features_are_frozen_and_the_rest_is_trained(steps: dict[str, Path]) -> None:
    one, two, three, four = (
        weights(steps[name]) for name in ("1_rpn", "2_fast_rcnn", "3_rpn", "4_fast_rcnn")
    )
    shared = [name for name in two if name.startswith(("bottom_up.", "neck."))]
    assert any("running_mean" in name for name in shared)
    for name in shared:
        assert torch.equal(two[name], three[name]), name
        assert torch.equal(two[name], four[name]), name
    # Step 2 starts anew, from ImageNet's weights or the seed's, not from step 1.
    assert any(not torch.equal(one[name], two[name]) for name in shared)
    for name in (name for name in two if name.startswith("roi_head.")):
        assert not torch.equal(two[name], four[name]), name


def test_joined_is_the_two_halves(steps: dict[str, Path]) -> None:
    joined = load(steps[""] / "joined.ckpt").detector
    assert type(joined).__name__ == "FasterRCNN"
    state = joined.state_dict()
    halves = weights(steps["3_rpn"]) | weights(steps["4_fast_rcnn"])
    assert state.keys() == halves.keys()
    assert all(torch.equal(state[name], halves[name]) for name in state)
    # The same proposals, the same detections, hence the same numbers.
    whole, half = (json.loads((steps[name] / "scores.json").read_text()) for name in ("", "4_fast_rcnn"))
    for key in ("AP", "AP50", "AR@100", "proposal_AR@100", "proposal_AR@1000"):
        assert whole[key] == pytest.approx(half[key], abs=1e-6), key


def test_a_joined_checkpoint_cannot_be_gone_on_with(
    steps: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = steps[""] / "joined.ckpt"
    monkeypatch.chdir(joined.parents[4])
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--ckpt_path", str(joined)])
    assert caught.value.code == 2
    assert "start a new run with model.start_from" in capsys.readouterr().err


def test_a_step_with_frozen_parts_goes_on(
    steps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without model.start_from, whose weights the checkpoint has long taken over."""
    three = steps["3_rpn"] / "last.ckpt"
    monkeypatch.chdir(steps[""].parents[3])
    logger = ["--trainer.logger.save_dir", str(tmp_path)]
    main(["fit", "--ckpt_path", str(three), "--model.schedule.steps", "4", *logger])
    (last,) = tmp_path.rglob("last.ckpt")
    went_on, before = load(last).detector.state_dict(), weights(steps["3_rpn"])
    assert any(not torch.equal(went_on[name], value) for name, value in before.items())
    assert all(torch.equal(went_on[name], before[name]) for name in before if name.startswith("neck."))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("[neck]", "neck would stay as random as it is"),
        ("[bottom_up, head]", "this detector has no 'head'; it has bottom_up, neck, rpn"),
    ],
)
def test_frozen_parts_that_make_no_sense(
    parts: str,
    message: str,
    steps: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(steps[""].parents[3])
    given = [word for key, value in GIVEN.items() if "data" not in key for word in (f"--{key}", str(value))]
    with pytest.raises(SystemExit) as caught:
        main(["fit", *given, "--data.root", "shapes", "--model.frozen_parts", parts])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_halves_that_do_not_fit(steps: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["join", *map(str, words), "out.ckpt"])
        assert caught.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        return lines[-1]

    one, two, four = (steps[n] / "last.ckpt" for n in ("1_rpn", "2_fast_rcnn", "4_fast_rcnn"))
    assert "do not share their features (bottom_up.bn1" in refused(one, two)
    assert "holds no ProposalNetwork but fpn.FastRCNN" in refused(two, four)
    assert "does not exist" in refused("absent.ckpt", four)
    assert not Path("out.ckpt").exists()


def test_start_from(steps: dict[str, Path], tmp_path: Path) -> None:
    detector = load(steps["1_rpn"] / "last.ckpt").detector
    start = start_from(detector, steps["4_fast_rcnn"] / "last.ckpt")
    assert (start.copied, start.new) == (["bottom_up", "neck"], ["rpn"])
    four = weights(steps["4_fast_rcnn"])
    assert all(torch.equal(v, four[k]) for k, v in detector.state_dict().items() if k in four)
    before = {key: value.clone() for key, value in detector.neck.state_dict().items()}
    for value in detector.neck.parameters():
        value.data += 1
    assert start_from(detector, steps["4_fast_rcnn"] / "last.ckpt", ["bottom_up"]).copied == ["bottom_up"]
    assert not any(torch.equal(before[key], value) for key, value in detector.neck.state_dict().items())
    with pytest.raises(InputError, match="do not both have weights of 'roi_head'"):
        start_from(detector, steps["4_fast_rcnn"] / "last.ckpt", ["bottom_up", "roi_head"])
    kept = {"config": {}, "categories": {"ids": [1], "names": ["one"]}, "image": {}}
    torch.save({"state_dict": {}, "fpn": kept}, tmp_path / "empty.ckpt")
    with pytest.raises(InputError, match="has none of the parts of this detector"):
        start_from(detector, tmp_path / "empty.ckpt")
    torch.save({"state_dict": {}, "fpn": 1}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"other\.ckpt is not a checkpoint of this project"):
        start_from(detector, tmp_path / "other.ckpt")
    narrow = torch.load(steps["4_fast_rcnn"] / "last.ckpt", weights_only=True)
    narrow["state_dict"] = {k: v.reshape(-1)[:1] for k, v in narrow["state_dict"].items()}
    torch.save(narrow, tmp_path / "narrow.ckpt")
    with pytest.raises(InputError, match=r"bottom_up of .*narrow.ckpt does not fit"):
        start_from(detector, tmp_path / "narrow.ckpt")
