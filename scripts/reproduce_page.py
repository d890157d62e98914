"""What the steps of `reproduce_coco.sh` need, and the page of what came out, beside the figures of others.

python scripts/reproduce_page.py needs modern,paper runs/coco DEVICES RATE -- [words of `fpn fit`]
python scripts/reproduce_page.py differs runs/coco/published/NAME/words.txt -- [words of `fpn test`]
python scripts/reproduce_page.py page runs/coco
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import timing
from fpn.console import say
from fpn.errors import InputError
from fpn.files import replacing
from fpn.models.detectors import Detector
from fpn.models.roi_head import Conv5Head
from fpn.shipped import CONFIGS
from fpn.study.paper import paper_table
from fpn.study.report import write_report
from fpn.study.results import read_runs
from fpn.study.rows import TABLES, plan
from fpn.study.sections import LAYOUTS
from fpn.study.settings import difference, result_settings, settings_of
from fpn.study.tasks import Step
from fpn.words import options_of, read_text, read_yaml, spelled_out

PUBLISHED = ("torchvision", "detectron2")
TABLES_1_TO_3 = ("table1", "table2", "table3")
TRAINED = {"modern": {"table3": ["c"]}, "paper": {table: list(TABLES[table]) for table in TABLES_1_TO_3}}
"""The rows of each family."""
FIELD = {
    ("modern", "table3", "c"): (37.9, "Detectron2, R50-FPN 1x"),
    ("paper", "table1", "a"): (51.6, "Detectron, RPN R50-C4 1x"),
    ("paper", "table1", "c"): (57.2, "Detectron, RPN R50-FPN 1x"),
    ("paper", "table2", "a"): (34.4, "Detectron, Fast R50-C4 1x"),
    ("paper", "table2", "c"): (36.4, "Detectron, Fast R50-FPN 1x"),
    ("paper", "table3", "a"): (34.8, "Detectron, Faster R50-C4 1x"),
    ("paper", "table3", "c"): (36.7, "Detectron, Faster R50-FPN 1x"),
}
"""AP, of Table 1 AR@1000, from their MODEL_ZOO.md; a 1x is 90k steps, more than the paper's."""
RATE, ON_CONV5 = 9.5, 0.551 / 0.210
"""Detectron2's Faster R-CNN on V100s: images/s of each, and a step on C4, with conv5 as head, over FPN's."""
TRAIN, VAL = 118_287, 5_000
"""Images of COCO 2017."""


def needs(steps: Sequence[str], out: Path, devices: int, rate: float, given: Sequence[str]) -> None:
    """Print what each step takes, as far as it follows from counts or is published."""
    speed, source = (rate, "as given") if rate else (RATE * devices, f"Detectron2's, {RATE:g} a V100")
    say("the data: 19 GB of training images, 1 GB of validation images, and their annotations")
    for name in (name for name in PUBLISHED if name in steps):
        say(f"{name}: {len(published(name))} detectors to score on {VAL:,} images each")
        if name == "torchvision":
            say("  disk: 0.5 GB of weights to download, unless --torchvision has them")
        say("  time: not measured yet; Detectron2's R50-FPN in its own code takes 0.038 s an image on a V100")
        say("  memory: not measured yet")
    for name in (name for name in TRAINED if name in steps):
        rows = TRAINED[name]["table3"] if name == "modern" else ()
        tasks = plan(list(TRAINED[name]), rows, family=name, out=out / name, given=given)
        work = [(step, task.name.split("/")) for task in tasks for step in task.steps]
        fits = [(images_of(step), detector_of(step), of) for step, of in work if step.words[0] == "fit"]
        proposing = [step.name for step, _ in work if step.words[0] == "predict"]
        # A box and its score are 20 bytes.
        boxes = 2000 * TRAIN * proposing.count("propose_train") + 1000 * VAL * proposing.count("propose_val")
        scored = 154 * 1000 * VAL * sum(not net.finds_objects for _, net, _ in fits)  # a JSON entry each
        images, disk = sum(seen for seen, *_ in fits), sum(checkpoint_bytes(net) for _, net, _ in fits) / 5e8
        slow = {" ".join(of[:2]): seen for seen, net, of in fits if Conv5Head in map(type, net.modules())}
        told = "not known on a CPU; give --images_per_second"
        if speed:
            hours = (images + (ON_CONV5 - 1) * sum(slow.values())) / speed / 3600
            told = f"{hours:.1f} h at {speed:g} images/s ({source}), a run at a time; tests come on top"
        say(f"{name}: {images:,.0f} images to train on, in {len(fits)} of the runs")
        say(f"  time: {told}")
        if slow and speed:
            say(f"    {', '.join(slow)} count {ON_CONV5:.1f} times: a step on C4 to one on FPN in Detectron2")
        say(f"  disk: {disk:.1f} GB of checkpoints, two a run, and up to {boxes / 5e7:.1f} GB of proposals")
        say(
            f"    to train on; tests leave {scored / 1e9:.1f} GB in files proposals.json, which nothing reads"
        )
        say("  memory: not measured yet; Detectron2's Faster R-CNN has 3.0 GB for 2 images a GPU, 4.8 on C4")


def images_of(fit: Step) -> float:
    """How many images a training sees.

    Raises:
        InputError: what the schedule counts is no number.
    """
    schedule = {name.removeprefix("model.schedule."): v for name, v in settings_of(fit.words).items()}
    asked = schedule.get("epochs"), schedule["steps"], schedule.get("reference_images", 16)
    try:  # YAML takes 2e-05 for a text
        epochs, steps, images, length = (float(v or 0) for v in (*asked, schedule.get("length", 1)))
    except (TypeError, ValueError) as error:
        raise InputError(f"model.schedule: {error}; give numbers") from None
    return epochs * TRAIN or steps * images * length


def detector_of(fit: Step) -> Detector:
    """That of the row's files, its weights without memory."""
    with torch.device("meta"):
        return timing.detector_of(*(str(file) for name, file in options_of(fit.words) if name == "config"))


def checkpoint_bytes(detector: Detector) -> int:
    """Of a checkpoint: the weights, and the momentum of those that are trained."""
    trained = sum(weight.numel() for weight in detector.parameters() if weight.requires_grad)
    return 4 * (sum(value.numel() for value in detector.state_dict().values()) + trained)


def words_of(file: Path) -> list[str]:
    """What was given to each command, a word a line; none where there is no file."""
    return read_text(file).splitlines() if file.is_file() else []


def published(kind: str) -> list[tuple[str, str, float, str]]:
    """Of detectors that others publish: the file's name, the score's, the score, and whose it is."""
    found = []
    for path in sorted((CONFIGS / "interop").glob(f"{kind}_*.yaml")):
        about = read_yaml(path)["trainer"]["callbacks"][0]["init_args"]
        found += [(path.stem, name, score, about["source"]) for name, score in about["scores"].items()]
    return found


Line = tuple[str, str, float | None, float | None, str, Mapping[str, float | None] | None, str]
"""What, the score's name, the paper's, the field's, its source, our scores, other settings."""


def results(out: Path, folders: Sequence[Path]) -> Iterator[Line]:
    """All that the steps make, whether there or missing."""
    for kind in PUBLISHED:
        for name, score, theirs, source in published(kind):
            file, words = (out / "published" / name / one for one in ("scores.json", "words.txt"))
            given = " ".join(words_of(words))
            try:
                ours = json.loads(file.read_bytes()) if file.is_file() else None
            except ValueError as error:
                raise InputError(f"{file}: not JSON ({error}); remove it, and it is scored again") from None
            yield f"{name}, published weights", score, None, theirs, source, ours, given
    runs = sorted(read_runs(folders) if folders else [], key=lambda run: (run.scores is None, run.seed))
    for family, tables in TRAINED.items():
        for table, rows in tables.items():
            for row in rows:
                score, of_row = LAYOUTS[table].ranked[0], (family, table, row)
                found = [run for run in runs if (run.family, run.table, run.row) == of_row]
                run = found[0] if found else None
                papers = paper_table(table).rows.get(row)
                paper = None if papers is None else papers.values[score]
                what = f"{table} {row}, {TABLES[table][row].name}, {family} recipe"
                what += f", seed {found[0].seed} ({len(found) - 1} more in the report)" if found[1:] else ""
                field = FIELD.get((family, table, row), (None, "-"))
                other = "" if run is None or run.data == "coco" else run.data
                yield what, LAYOUTS[table].prefix + score, paper, *field, run and run.scores, other


def page(out: Path) -> None:
    """Write OUT/results.md, and `fpn report`'s page of the rows that were trained into OUT/report.

    Raises:
        InputError: results cannot be read.
    """
    folders = [out / name for name in TRAINED if any((out / name).rglob("run.json"))]
    lines = ["# Results on COCO 2017", "", "AP and AR in percent; differences are ours less theirs.", ""]
    lines += ["| result | score | paper | field | ours | ours - paper | ours - field | field's source |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|---|"]
    missing: list[str] = []
    others: dict[str, list[str]] = {}
    for what, score, paper, field, source, scores, other in results(out, folders):
        value = None if scores is None else scores.get(score)
        ours = None if value is None else 100 * value
        cells = ["-" if x is None else f"{x:.1f}" for x in (paper, field, ours)]
        cells += ["-" if x is None or ours is None else f"{ours - x:+.1f}" for x in (paper, field)]
        lines.append(f"| {' | '.join([what, score.removeprefix('proposal_'), *cells, source])} |")
        missing += [f"- {what}"] if ours is None else []
        if other:
            others.setdefault(other, []).append(what)
    lines += ["", "## Missing", "", *missing] if missing else []
    if others:
        lines += ["", "## Under other settings, not to be compared as they stand", ""]
        lines += [f"- `{settings}`: {'; '.join(whats)}" for settings, whats in others.items()]
    if folders:
        write_report(folders, out / "report")
        lines += ["", "All columns, and curves of recall: [the report](report/report.md)."]
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "results.md") as new:
        new.write_text("\n".join(lines) + "\n", encoding="utf-8")
    say(f"written to {out / 'results.md'}; missing: {len(missing)}")


if __name__ == "__main__":
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    (what, *words), given = sys.argv[1:end], spelled_out(sys.argv[end + 1 :])
    try:
        if what == "page":
            page(Path(words[0]))
        elif what == "differs":
            then, now = (result_settings(settings_of(each)) for each in (words_of(Path(words[0])), given))
            say(difference(then, now) or "")
        else:
            needs(words[0].split(","), Path(words[1]), int(words[2]), float(words[3] or 0), given)
    except InputError as error:
        sys.exit(f"reproduce_coco.sh: {error}")
