"""`fpn evaluate` and `fpn proposals`: files of results, scored and converted."""

from pathlib import Path

from jsonargparse.typing import PositiveInt
from rich.console import Console

from fpn.console import say
from fpn.data.results import proposals_from_results, proposals_to_results
from fpn.errors import InputError
from fpn.evaluation import Engine, evaluate_proposals, score_boxes
from fpn.evaluation.tables import box_table, category_table, proposal_table


def evaluate(annotations: str, results: str, proposals: bool = False, engine: Engine = "faster") -> None:
    """Score a saved results file by the COCO protocol.

    Args:
        annotations: the ground truth, a COCO instances file.
        results: a list of {image_id, category_id, bbox, score}, as COCO's server takes it.
        proposals: score as class-agnostic proposals: average recall at 100 and 1000 boxes an image.
        engine: what computes the scores; pycocotools is the slower reference with the same numbers.
    """
    console = Console()
    if proposals:
        console.print(proposal_table(evaluate_proposals(annotations, results, engine=engine)))
        return
    scores = score_boxes(annotations, results, engine=engine)
    console.print(category_table(scores.categories), box_table(scores.overall))


def proposals(source: str, out: str, annotations: str | None = None, top: PositiveInt | None = None) -> None:
    """Convert a COCO results file to a proposal file, or back.

    A proposal file is what data.train.proposals, data.val.proposals and data.test.proposals name:
    the boxes that Fast R-CNN is trained and tested on. `fpn predict --annotations` writes one of a
    trained ProposalNetwork; this command makes one of any other proposer's results.

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
