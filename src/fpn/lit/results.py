"""`fpn evaluate` and `fpn proposals`: files of results, scored and converted."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from torch import Tensor

from fpn.console import say
from fpn.data.coco import CocoDataset, annotations_of
from fpn.data.coco_file import CocoFile, Crowds, read_json, uncollected
from fpn.data.results import proposals_from_results, proposals_to_results
from fpn.data.transforms import ImageSettings, as_stored
from fpn.errors import InputError
from fpn.evaluation import Engine
from fpn.evaluation.inputs import read_results, read_truth
from fpn.evaluation.scoring import box_scores, proposal_scores
from fpn.evaluation.tables import box_table, category_table, proposal_table
from fpn.report import Reported, input_scales, write_report
from fpn.settings import PositiveInt, Share


def evaluate(
    annotations: str,
    results: str,
    proposals: bool = False,
    engine: Engine = "faster",
    report: str | None = None,
    images: str | None = None,
    score_threshold: Share = 0.5,
    short_side: PositiveInt | None = None,
    max_side: PositiveInt = 1333,
    crowds: Crowds = "regions",
) -> None:
    """Score a saved results file, of any program, by the COCO protocol.

    examples:
      the tables of AP and AR
        fpn evaluate --annotations instances_val2017.json --results detections.json
      proposals, whatever their categories
        fpn evaluate --annotations instances_val2017.json --results boxes.json --proposals
      a page too: curves, errors, confusions, scores by size and level, images
        fpn evaluate --annotations val.json --results detections.json --report page.html --images val/

    Beside the page lie its curves, as page_curves.png. From the folder of a test it takes the settings
    and the training's metrics.

    Args:
        annotations: the ground truth, a COCO instances file.
        results: a list of {image_id, category_id, bbox, score}, as COCO's server takes it.
        proposals: score as class-agnostic proposals: average recall of 100 and 1000 boxes an image.
        engine: what computes the scores; pycocotools is slower, with the same numbers.
        report: the page to write, as report.html.
        images: the folder in which the annotations' file names start, for the page to show some.
        score_threshold: what counts as found in the page's confusions and pictures.
        short_side: pixels of an image's short side at the network's input: the page tells of sizes there too,
            and of the paper's levels.
        max_side: most pixels of its long side there.
        crowds: what iscrowd 1 says of an annotation, as data.crowds.
    """
    if report is None and images is not None:
        raise InputError("--images are shown on a page: give --report, the file to write")
    console = Console()
    with uncollected():
        truth = read_truth(annotations, tell=say, crowds=crowds)
        found = read_results(results, truth, with_categories=not proposals, tell=say)
    scores = None
    if proposals:
        console.print(proposal_table(proposal_scores(truth, found, engine=engine)))
    else:
        scores = box_scores(truth, found, engine=engine)
        console.print(category_table(scores.categories), box_table(scores.overall))
    if report is None:
        return
    # Of the images alone: scoring takes annotations that training would not.
    content = read_json(Path(annotations), "annotations") | {"annotations": []}
    file = CocoFile(annotations, content, None if images is None else Path(images))
    listed, folder, page = annotations_of(file), Path(results).parent, Path(report)
    pictures: dict[int, Callable[[], Tensor]] = {}
    if images is not None:
        listed = listed.found_in(Path(images), len(listed), console.print)
        dataset = CocoDataset(listed, Path(images), as_stored)
        files = zip(listed.image_ids.tolist(), listed.file_names.tolist(), strict=True)
        there = [(place, id_) for place, (id_, name) in enumerate(files) if Path(images, name).is_file()]
        pictures = {id_: partial(dataset.picture, place) for place, id_ in there}
    config = folder / "config.yaml"
    write_report(
        Reported(
            f"{results} on {annotations}",
            truth,
            None if proposals else found,
            scores,
            found if proposals else None,
            input_scales(truth, listed, ImageSettings(short_side, max_side)) if short_side else None,
            pictures=pictures,
            history=folder.parent / "metrics.csv",
            settings=config.read_text() if config.is_file() else "",
            score=score_threshold,
        ),
        page,
        page.with_name(f"{page.stem}_curves.png"),
    )
    say(f"the report: {page}")


def proposals(source: str, out: str, annotations: str | None = None, top: PositiveInt | None = None) -> None:
    """Convert a COCO results file to a proposal file, or back.

    A proposal file is what data.train.proposals, data.val.proposals and data.test.proposals name:
    the boxes that Fast R-CNN is trained and tested on. `fpn predict --annotations` writes one of a
    trained ProposalNetwork; this command makes one of any other proposer's results.

    examples:
        fpn proposals found.json found.safetensors --annotations instances_train2017.json
        fpn proposals found.safetensors found.json --annotations instances_train2017.json --top 100

    Boxes are kept as they are, best first in each image; the categories of results are ignored,
    and 1 in those that are written.

    Args:
        source: the file to convert: .json, a list of {image_id, bbox, score}, or .safetensors.
        out: the file to write: .safetensors or .json, the other of the two.
        annotations: the COCO file that lists the images, which has to be given.
        top: only so many boxes of each image are taken, the best; all of them by default.
    """
    convert = {
        (".json", ".safetensors"): proposals_from_results,
        (".safetensors", ".json"): proposals_to_results,
    }.get((Path(source).suffix, Path(out).suffix))
    if convert is None:
        raise InputError(f"{source} to {out}: fpn proposals converts .json to .safetensors, or back")
    if annotations is None:
        raise InputError("fpn proposals needs --annotations, the COCO file that lists the images")
    number = convert(Path(source), Path(annotations), Path(out), top)
    say(f"{number:,} boxes written to {out}")
