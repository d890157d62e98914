"""Proposal files, against hand-made ones; results files, against JSON and pycocotools' own reading."""

import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fpn.data.proposals import Proposals, Stamp, file_hash, write_proposals
from fpn.data.results import proposals_from_results, proposals_to_results, write_results
from fpn.errors import InputError

STAMP = Stamp("5e" * 32, "train.json", "", "found.json")
METADATA = {"format": "fpn proposals", "version": "1", **STAMP._asdict()}
BOXES = [[1.5, 2, 30, 40], [0, 0, 10, 10], [5, 5, 6, 7]]


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    """Image 12 has two boxes, 7 none, 300 one."""
    return {
        "image_ids": np.array([12, 7, 300]),
        "offsets": np.array([0, 2, 2, 3]),
        "boxes": np.array(BOXES, dtype=np.float32),
        "scores": np.array([0.75, 0.5, 0.25], dtype=np.float32),
    } | changes


def hand_made(path: Path, metadata: dict[str, str] | None = METADATA, **changes: Any) -> Path:
    kept = {name: array for name, array in arrays(**changes).items() if array is not None}
    save_file(kept, path, metadata=metadata)
    return path


def annotations(folder: Path, image_ids: Sequence[int] = (12, 7, 300)) -> Path:
    """An annotation file without objects."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 50, "width": 60} for i in image_ids],
        "categories": [{"id": 4, "name": "cat"}],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_a_hand_made_file(tmp_path: Path) -> None:
    file = Proposals(hand_made(tmp_path / "found.safetensors"))
    assert file.image_ids.tolist() == [12, 7, 300]
    assert file.stamp == STAMP
    for image_id, own in {12: BOXES[:2], 7: [], 300: BOXES[2:]}.items():
        assert file.for_image(image_id).tolist() == own
        assert file.for_image(image_id).shape == (len(own), 4)
        assert file.for_image(image_id).dtype == torch.float32
    assert [file.scores_for_image(i).tolist() for i in (12, 7, 300)] == [[0.75, 0.5], [], [0.25]]
    for absent in (13, 0, 301):
        with pytest.raises(InputError, match=f"does not list image {absent}"):
            file.for_image(absent)


def test_what_is_returned_is_a_copy(tmp_path: Path) -> None:
    file = Proposals(hand_made(tmp_path / "found.safetensors"))
    file.for_image(12).zero_()
    assert file.for_image(12).tolist() == BOXES[:2]
    assert file.for_image(12).untyped_storage().nbytes() == 2 * 4 * 4


def test_images_without_any_box(tmp_path: Path) -> None:
    changes = {
        "offsets": np.zeros(4, dtype=np.int64),
        "boxes": np.zeros((0, 4), dtype=np.float32),
        "scores": np.zeros(0, dtype=np.float32),
    }
    file = Proposals(hand_made(tmp_path / "none.safetensors", **changes))
    assert file.for_image(300).shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": None}, "not a proposal file"),
        ({"metadata": {"format": "pt"}}, "not a proposal file"),
        ({"metadata": METADATA | {"version": "2"}}, "version 2 of the format, where this program reads"),
        ({"boxes": None}, "damaged: it holds"),
        ({"extra": np.zeros(3)}, "damaged: it holds"),
        ({"boxes": np.zeros((3, 4))}, "damaged: it holds"),
        ({"image_ids": np.zeros(3, dtype=np.float32)}, "damaged: it holds"),
        ({"boxes": np.zeros((3, 5), dtype=np.float32)}, "damaged: its arrays have the shapes"),
        ({"boxes": np.zeros(12, dtype=np.float32)}, "damaged: its arrays have the shapes"),
        ({"scores": np.zeros(2, dtype=np.float32)}, "damaged: its arrays have the shapes"),
        ({"offsets": np.zeros(3, dtype=np.int64)}, "damaged: its arrays have the shapes"),
        ({"image_ids": np.array(12), "offsets": np.array(0)}, "damaged: its arrays have the shapes"),
        ({"offsets": np.array([0, 2, 1, 3])}, "do not divide"),
        ({"offsets": np.array([1, 2, 2, 3])}, "do not divide"),
        ({"offsets": np.array([0, 2, 2, 4])}, "do not divide"),
        ({"image_ids": np.array([12, 7, 12])}, "listed twice"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = hand_made(tmp_path / "found.safetensors", **changes)
    with pytest.raises(InputError) as caught:
        Proposals(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_inverted_box_is_named(tmp_path: Path) -> None:
    boxes = np.array(BOXES, dtype=np.float32)
    boxes[1, 2] = boxes[1, 0] - 1
    file = Proposals(hand_made(tmp_path / "found.safetensors", boxes=boxes))
    with pytest.raises(InputError, match="a box of image 12 ends before it begins"):
        file.for_image(12)


def test_what_is_no_safetensors_file_at_all(tmp_path: Path) -> None:
    whole = hand_made(tmp_path / "found.safetensors").read_bytes()
    for content in (b"", b"[]", b"\x80\x02}." * 40, whole[:100], whole[:-5]):
        path = tmp_path / "other.safetensors"
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a proposal file"):
            Proposals(path)
    for absent in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(InputError, match="no such proposal file"):
            Proposals(absent)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_boxes_that_are_not_numbers(tmp_path: Path, value: float) -> None:
    boxes = np.array(BOXES, dtype=np.float32)
    boxes[1, 2] = value
    file = Proposals(hand_made(tmp_path / "found.safetensors", boxes=boxes))
    assert len(file.for_image(300)) == 1
    with pytest.raises(InputError, match="the boxes of image 12 are not all finite"):
        file.for_image(12)


def test_files_are_checked_against_their_annotations(tmp_path: Path) -> None:
    truth = annotations(tmp_path)
    digest = sha256(truth.read_bytes()).hexdigest()
    assert file_hash(truth) == digest
    path = hand_made(tmp_path / "found.safetensors", METADATA | {"annotations": digest})
    file = Proposals(path)
    file.check(truth, np.array([7, 300]))
    with pytest.raises(InputError, match=r"lacks 2 images of .*instances\.json, the first of id 8") as caught:
        file.check(truth, np.array([7, 8, 9]))
    assert str(path) in str(caught.value)
    truth.write_text(truth.read_text() + "\n")
    with pytest.raises(InputError, match=r"another annotation file, train\.json, not for") as caught:
        file.check(truth, np.array([7]))
    assert str(path) in str(caught.value)
    assert str(truth) in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        file.check(tmp_path / "absent.json", np.array([7]))


found_in_images = st.dictionaries(
    st.integers(0, 2**40),
    st.lists(
        st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 4, st.sampled_from([0.0, 0.125, 0.5, 1.0, -3.0])).map(
            lambda one: (*sorted(one[:4]), one[4])
        ),
        max_size=6,
    ),
    max_size=6,
)


@given(found_in_images)
def test_written_files_are_read_back_best_first(
    tmp_path_factory: pytest.TempPathFactory, found: dict[int, list[tuple[float, ...]]]
) -> None:
    folder = tmp_path_factory.mktemp("written") / "made"
    path = folder / "found.safetensors"
    rows = [torch.tensor(own).reshape(-1, 5) for own in found.values()]
    write_proposals(path, list(found), [r[:, :4] for r in rows], [r[:, 4] for r in rows], STAMP)
    assert list(folder.iterdir()) == [path]
    file = Proposals(path)
    assert file.stamp == STAMP
    assert file.image_ids.tolist() == list(found)
    for image_id, own in found.items():
        expected = sorted(own, key=lambda row: -row[4])  # stable, as is ours
        assert file.for_image(image_id).tolist() == [list(row[:4]) for row in expected]
        assert file.scores_for_image(image_id).tolist() == [row[4] for row in expected]


def test_half_precision_is_written_as_single(tmp_path: Path) -> None:
    path = tmp_path / "found.safetensors"
    box = torch.tensor([[1.0, 2, 3, 4]])
    write_proposals(path, [1, 2], [box.half(), box.double()], [torch.ones(1).half(), torch.ones(1)], STAMP)
    assert Proposals(path).for_image(2).tolist() == [[1, 2, 3, 4]]
    assert {name: str(array.dtype) for name, array in load_file(path).items()} == {
        "image_ids": "int64",
        "offsets": "int64",
        "boxes": "float32",
        "scores": "float32",
    }


def test_lengths_that_do_not_fit(tmp_path: Path) -> None:
    box, score = torch.zeros(2, 4), torch.zeros(2)
    path = tmp_path / "found.safetensors"
    for ids, boxes, scores in (([1], [box, box], [score, score]), ([1], [box], [score[:1]])):
        with pytest.raises(ValueError, match="as many"):
            write_proposals(path, ids, boxes, scores, STAMP)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, [{"score": 1.0}])

    def failing() -> Any:
        yield {"score": 2.0}
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - the very one
        write_results(path, failing())
    assert json.loads(path.read_text()) == [{"score": 1.0}]
    assert list(tmp_path.iterdir()) == [path]


class Boxes(Dataset[tuple[int, Tensor]]):
    def __init__(self, file: Proposals) -> None:
        self.file = file

    def __len__(self) -> int:
        return len(self.file.image_ids)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        image_id = int(self.file.image_ids[index])
        return image_id, self.file.for_image(image_id)


@pytest.mark.parametrize("read_before", [False, True])
def test_two_loader_workers_read_the_same(tmp_path: Path, read_before: bool) -> None:
    path = tmp_path / "found.safetensors"
    rows = [torch.rand(i % 4, 4).sort().values for i in range(20)]
    write_proposals(path, range(20), rows, [torch.ones(len(r)) for r in rows], STAMP)
    file = Proposals(path)
    if read_before:
        assert torch.equal(file.for_image(3), rows[3])
    loader = DataLoader(Boxes(file), batch_size=3, num_workers=2, collate_fn=list)
    for _ in range(2):
        found = [one for batch in loader for one in batch]
        assert [image_id for image_id, _ in found] == list(range(20))
        assert all(torch.equal(boxes, rows[image_id]) for image_id, boxes in found)


def test_an_open_file_travels_without_its_boxes(tmp_path: Path) -> None:
    path = tmp_path / "found.safetensors"
    write_proposals(path, [5], [torch.rand(20_000, 4).sort().values], [torch.ones(20_000)], STAMP)
    file = Proposals(path)
    boxes = file.for_image(5)
    packed = pickle.dumps(file)
    assert len(packed) < 3000
    assert torch.equal(pickle.loads(packed).for_image(5), boxes)


def test_a_file_replaced_in_use_is_not_mistaken(tmp_path: Path) -> None:
    path = hand_made(tmp_path / "found.safetensors")
    file = Proposals(path)
    packed = pickle.dumps(file)
    path.unlink()
    hand_made(path, offsets=np.array([0, 1, 2, 3]))
    with pytest.raises(InputError, match="has been replaced"):
        pickle.loads(packed).for_image(12)


GROWTH = """
import resource, sys
import torch
from fpn.data.proposals import Proposals

file = Proposals(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for image_id in range(0, len(file.image_ids), 50):
    file.for_image(image_id)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "found.safetensors"
    box, score = torch.rand(2000, 4).sort().values, torch.ones(2000)
    write_proposals(path, range(4000), [box] * 4000, [score] * 4000, STAMP)
    assert path.stat().st_size > 150 * 2**20
    run = subprocess.run([sys.executable, "-c", GROWTH, path], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 40, "MiB"


def result(image_id: int, box: list[float], score: float, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "bbox": box, "score": score} | more


def test_results_become_proposals(tmp_path: Path) -> None:
    truth = annotations(tmp_path)
    results = tmp_path / "found.json"
    entries = [
        result(300, [1, 2, 3, 4], 0.25, category_id=77),
        result(12, [0, 0, 5, 0], -1, id=3),
        result(12, [-5, 60, 1000, 20.5], 7.5),
        result(12.0, [9, 9, 9, 9], -1),  # type: ignore[arg-type]
    ]
    results.write_text(json.dumps(entries))
    out = tmp_path / "found.safetensors"
    assert proposals_from_results(results, truth, out) == 4
    file = Proposals(out)
    file.check(truth, np.array([12, 7, 300]))
    assert file.stamp == Stamp(file_hash(truth), "instances.json", "", "found.json")
    assert file.image_ids.tolist() == [12, 7, 300]
    assert file.for_image(12).tolist() == [[-5, 60, 995, 80.5], [0, 0, 5, 0], [9, 9, 18, 18]]
    assert file.scores_for_image(12).tolist() == [7.5, -1, -1]
    assert file.for_image(7).tolist() == []
    assert file.for_image(300).tolist() == [[1, 2, 4, 6]]
    assert proposals_from_results(results, truth, out, top=1) == 2
    assert Proposals(out).for_image(12).tolist() == [[-5, 60, 995, 80.5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ({"annotations": []}, "not a list of objects"),
        ([3], "not a list of objects"),
        ([result(13, [0, 0, 1, 1], 1)], "'image_id' of entry 0 is 13, which"),
        ([result(12, [0, 0, 1, 1], 1), result(12, [0, 0, -1, 1], 1)], "'bbox' of entry 1"),
        ([result(12, [0, 0, 1], 1)], "'bbox' of entry 0 is [0, 0, 1], not four numbers"),
        ([result(12, [0, 0, 1, float("nan")], 1)], "'bbox' of entry 0 is [0, 0, 1, nan], not four finite"),
        ([result(12, [0, 0, 1, float("inf")], 1)], "'bbox' of entry 0 is [0, 0, 1, inf], not four finite"),
        ([result(12, [0, 0, 1, 1e300], 1)], "'bbox' of entry 0"),
        ([result(12, [0, 0, 1, 1], float("nan"))], "'score' of entry 0 is nan, not a finite"),
        ([result(12, [0, 0, 1, 1], 1e300)], "'score' of entry 0"),
        ([result(12, [0, 0, 1, 1], "one")], "'score' of entry 0 is 'one', not a number"),  # type: ignore[arg-type]
        ([{"image_id": 12, "bbox": [0, 0, 1, 1]}], "'score' of entry 0 is missing"),
        ([{"score": 1, "bbox": [0, 0, 1, 1]}], "'image_id' of entry 0 is missing"),
    ],
)
def test_wrong_results_are_one_line_that_names_the_entry(tmp_path: Path, content: Any, message: str) -> None:
    truth, results, out = annotations(tmp_path), tmp_path / "found.json", tmp_path / "found.safetensors"
    results.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        proposals_from_results(results, truth, out)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{results}: ")
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_no_results_at_all(tmp_path: Path) -> None:
    truth, results, out = annotations(tmp_path), tmp_path / "found.json", tmp_path / "found.safetensors"
    results.write_text("[]")
    assert proposals_from_results(results, truth, out) == 0
    assert Proposals(out).for_image(300).shape == (0, 4)
    assert proposals_to_results(out, truth, results) == 0
    assert json.loads(results.read_text()) == []


@given(st.lists(st.tuples(*[st.floats(0, 4000, width=32)] * 4), max_size=20), st.integers(1, 30))
def test_there_and_back_is_exact(
    tmp_path_factory: pytest.TempPathFactory, boxes: list[tuple[float, ...]], top: int
) -> None:
    folder = tmp_path_factory.mktemp("back")
    truth = annotations(folder)
    corners = torch.tensor([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in boxes])
    corners = corners.reshape(-1, 4)
    scores = torch.linspace(1, 0, len(boxes))
    first, results, second = folder / "a.safetensors", folder / "b.json", folder / "c.safetensors"
    stamp = STAMP._replace(annotations=file_hash(truth))
    nothing = torch.zeros(0, 4)
    write_proposals(first, [12, 7, 300], [corners, nothing, corners], [scores, nothing[:, 0], scores], stamp)
    assert proposals_to_results(first, truth, results, top) == 2 * min(top, len(boxes))
    for entry in json.loads(results.read_text()):
        assert entry.keys() == {"image_id", "category_id", "bbox", "score"}
        assert entry["category_id"] == 1
    proposals_from_results(results, truth, second)
    for image_id, expected in ((12, corners), (7, nothing), (300, corners)):
        assert torch.equal(Proposals(second).for_image(image_id), expected[:top])
        assert torch.equal(Proposals(second).scores_for_image(image_id), scores[: len(expected[:top])])


def test_pycocotools_reads_what_is_written(tmp_path: Path) -> None:
    path = annotations(tmp_path)
    content = json.loads(path.read_text()) | {"annotations": [], "info": {}}
    path.write_text(json.dumps(content))
    made = hand_made(tmp_path / "found.safetensors", METADATA | {"annotations": file_hash(path)})
    results = tmp_path / "found.json"
    assert proposals_to_results(made, path, results) == 3
    read = COCO(str(path)).loadRes(str(results))
    assert [read.anns[i]["bbox"] for i in sorted(read.anns)] == [
        [1.5, 2, 28.5, 38],
        [0, 0, 10, 10],
        [5, 5, 1, 2],
    ]


def test_proposals_of_other_annotations_are_not_converted(tmp_path: Path) -> None:
    made = hand_made(tmp_path / "found.safetensors")
    with pytest.raises(InputError, match="another annotation file"):
        proposals_to_results(made, annotations(tmp_path), tmp_path / "found.json")
    assert not (tmp_path / "found.json").exists()
