import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from PIL import Image
from torchmetrics.functional.regression import kendall_rank_corrcoef

from fpn.errors import InputError
from fpn.study.commands import report
from fpn.study.paper import paper_table
from fpn.study.plots import line_style
from fpn.study.report import write_report
from fpn.study.results import read_runs
from fpn.study.sections import _T, compare_order

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "report.py"
Tables = dict[str, dict[str, dict[str, dict[str, str]]]]
"""Cells by section, row, line of the row and column."""


def run(
    folder: Path,
    scores: dict[str, Any] | None,
    *,
    curves: dict[str, Any] | None = None,
    **about: Any,
) -> Path:
    """A run's folder, by default of Table 1 (c) on COCO; unfinished without scores."""
    folder.mkdir(parents=True)
    default = {"table": "table1", "row": "c", "name": "FPN", "seed": 0, "family": "paper", "data": "coco"}
    (folder / "run.json").write_text(json.dumps(default | {"arguments": []} | about))
    if scores is not None:
        (folder / "scores.json").write_text(json.dumps(scores))
    if curves is not None:
        (folder / "curves.json").write_text(json.dumps(curves))
    return folder


def ar(average: float, **more: float) -> dict[str, Any]:
    """Scores of proposals: AR@1000, and half of it at 100."""
    scores = {"proposal_AR@100": average / 2, "proposal_AR@1000": average, "by_category": {"dog": {"AP": 1}}}
    return scores | {f"proposal_{key}": value for key, value in more.items()}


def curves(level: float, limits: tuple[int, ...] = (1, 10, 1000)) -> dict[str, Any]:
    octaves = [level, None, level / 2]
    return {
        "by_limit": {"limits": list(limits), "AR": [level] * len(limits)},
        "by_size": {
            "from": [0, 8, 16],
            "to": [8, 16, None],
            "objects": [3, 0, 1],
            "AR@100": octaves,
            "AR@1000": octaves,
        },
        "by_iou": {"thresholds": [0.5, 0.75], "recall@100": [level, 0], "recall@1000": [level, 0]},
    }


def parsed(path: Path) -> tuple[Tables, str]:
    """The report's tables as a reader of Markdown sees them, and its text."""
    text = path.read_text(encoding="utf-8")
    tables: Tables = {}
    section, row = "", ""
    cells: list[str] = []
    columns: list[str] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for before, token in itertools.pairwise(tokens):
        if before.type == "heading_open":
            section = "".join(child.content for child in token.children or ())
            tables[section] = {}
        elif before.type in ("th_open", "td_open"):
            cells.append("".join(child.content for child in token.children or ()))
        elif before.type == "tr_open":
            cells = []
        elif token.type == "tr_close" and not columns:
            columns = cells
        elif token.type == "tr_close":
            assert len(cells) == len(columns)
            row = cells[0] or row
            tables[section].setdefault(row, {})[cells[2]] = dict(zip(columns, cells, strict=True))
        elif token.type == "table_close":
            columns = []
    return tables, text


def test_the_papers_numbers() -> None:
    table = paper_table("table1")

    assert list(table.rows) == ["a", "b", "c", "d", "e", "f"]
    assert table.rows["c"].name == "FPN"
    assert table.rows["c"].values["AR@1000_small"] == 44.9
    assert paper_table("table2").rows["d"].values["AP"] == 24.9
    assert paper_table("table3").rows["star"].values["AP_small"] is None
    assert paper_table("table4").rows["resnet101"].values["AP"] == 36.2
    assert paper_table("table5").rows["resnet101_shared"].values == {"AP50": 58.2, "AP": 35.2}

    assert paper_table("running_time").rows["resnet50_fpn"].values == {"seconds": 0.148}


def test_recall_of_ten_proposals_comes_from_the_curves(tmp_path: Path) -> None:
    """The curve's word stands in where scores.json has none, and only there."""
    run(tmp_path / "c", ar(0.5), curves=curves(0.25))
    run(tmp_path / "d", ar(0.4), row="d")
    tables, _ = parsed(write_report([tmp_path], tmp_path / "out"))
    table = tables["Table 1 on coco"]
    assert (table["c"]["ours"]["AR@10"], table["c"]["ours"]["AR@1000"]) == ("25.0", "50.0")
    assert table["c"]["paper"]["AR@10"] == "-"
    assert table["d"]["ours"]["AR@10"] == "not scored"


def test_means_deviations_and_differences(tmp_path: Path) -> None:
    # 56, 57 and 61: mean 58, squared distances 4 + 1 + 9 over two, so a deviation of √7 = 2.6.
    for seed, value in enumerate((0.56, 0.57, 0.61)):
        none = None if seed else math.nan  # as it is written, and as it was
        scores = ar(value, **{"AR@1000_small": 0.45, "AR@1000_large": none})
        run(tmp_path / f"c{seed}", scores, seed=seed, anchors=200439)
    run(tmp_path / "c3", None, seed=3, anchors=200439)
    run(tmp_path / "a0", None, row="a", anchors=47250)
    run(tmp_path / "extra", ar(0.5), row="c_unshared", name="one | head <each>")
    tables, text = parsed(write_report([tmp_path], tmp_path / "out", all_rows=True))

    assert list(tables) == ["Report", "Table 1 on coco"]
    table = tables["Table 1 on coco"]
    assert list(table) == ["a", "b", "c", "d", "e", "f", "c_unshared"]
    assert table["c"]["paper"]["AR@1000"] == "56.3"
    assert table["c"]["paper"]["anchors"] == "200,000"
    ours = table["c"]["ours"]
    assert ours["n"] == "3 (1 unfinished)"
    assert ours["anchors"] == "200,439"
    assert ours["AR@1000"] == "58.0 ± 2.6"
    assert ours["AR@100"] == "29.0 ± 1.3"
    assert ours["AR@1000 small"] == "45.0 ± 0.0"
    assert ours["AR@1000 medium"] == "not scored"
    assert ours["AR@1000 large"] == "no object"
    difference = table["c"]["ours - paper"]
    assert difference["AR@1000"] == "+1.7"
    assert difference["AR@100"] == "-15.0"
    assert difference["AR@1000 small"] == "+0.1"
    assert difference["AR@1000 medium"] == "-"
    assert difference["anchors"] == ""

    assert table["a"]["ours"]["AR@1000"] == "unfinished"
    assert table["a"]["ours"]["anchors"] == "47,250"
    assert table["b"]["ours"]["AR@1000"] == "no run"
    assert list(table["b"]) == ["paper", "ours"]
    extra = table["c_unshared"]
    assert list(extra) == ["ours"], "the paper has no such row"
    assert extra["ours"]["name"] == "one | head <each>"
    assert extra["ours"]["AR@1000"] == "50.0"
    assert extra["ours"]["anchors"] == "-"
    assert "no finished run has a curves.json" in text
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_number_that_some_seeds_lack_says_over_how_many_it_is(tmp_path: Path) -> None:
    run(tmp_path / "0", ar(0.5, **{"AR@1000_small": 0.4}), seed=0)
    run(tmp_path / "1", ar(0.5), seed=1)
    tables, _ = parsed(write_report([tmp_path], tmp_path / "out"))
    assert tables["Table 1 on coco"]["c"]["ours"]["AR@1000 small"] == "40.0 (n = 1)"


def test_on_other_data_the_distances_from_row_c_stand_side_by_side(tmp_path: Path) -> None:
    run(tmp_path / "c", ar(0.30), data="shapes")
    run(tmp_path / "d", ar(0.25), data="shapes", row="d")
    run(tmp_path / "e", ar(0.31), data="shapes", row="e")
    tables, text = parsed(write_report([tmp_path], tmp_path / "out", all_rows=True))

    table = tables["Table 1 on shapes"]
    assert list(table["c"]) == ["paper", "ours"]
    # The paper's d is 49.5, its c 56.3.
    assert table["d"]["paper - paper (c)"]["AR@1000"] == "-6.8"
    assert table["d"]["ours - ours (c)"]["AR@1000"] == "-5.0"
    assert table["e"]["ours - ours (c)"]["AR@1000"] == "+1.0"
    assert list(table["f"]) == ["paper", "ours", "paper - paper (c)"]
    assert not any("ours - paper" in lines for lines in table.values())
    # c > d > e in the paper, e > c > d in ours: of three pairs two are inverted.
    assert (
        r"Order by AR@1000, 3 rows: Kendall's tau -0.33; inverted against the paper: c \< e, d \< e." in text
    )


def test_families_and_data_sets_are_never_mixed(tmp_path: Path) -> None:
    settings = [("modern", "shapes"), ("paper", "shapes"), ("modern", "coco"), ("paper", "coco")]
    for number, (family, data) in enumerate(settings):
        run(tmp_path / str(number), ar(0.1 * (number + 1)), family=family, data=data)
    run(tmp_path / "table3", {"AP": 0.5}, table="table3")
    run(tmp_path / "table4", {"AP": 0.36}, table="table4", row="resnet101")
    tables, _ = parsed(write_report([tmp_path], tmp_path / "out", all_rows=True))
    assert {name: table["c"]["ours"].get("AR@1000") for name, table in tables.items() if "c" in table} == {
        "Table 1 on coco": "40.0",
        "Table 1 on shapes": "20.0",
        "Table 1 on coco, modern recipe": "30.0",
        "Table 1 on shapes, modern recipe": "10.0",
        "Table 3 on coco": None,
    }
    assert list(tables)[1:3] == ["Table 1 on coco", "Table 1 on shapes"]
    assert tables["Table 3 on coco"]["c"]["ours"]["AP"] == "50.0"
    assert tables["Table 3 on coco"]["star"]["paper"]["AP small"] == "-"
    ((key, alone),) = tables["Table 4 on coco"].items()
    assert (key, alone["paper"]["AP"], alone["ours - paper"]["AP"]) == ("resnet101", "36.2", "-0.2")


def test_only_rows_that_were_run_are_shown_and_the_others_named(tmp_path: Path) -> None:
    for row in "abdef":
        if row != "e":
            run(tmp_path / row, ar(0.5), row=row, data="shapes")
    run(tmp_path / "unfinished", None, data="shapes")
    tables, text = parsed(write_report([tmp_path], tmp_path / "out"))
    assert list(tables["Table 1 on shapes"]) == ["a", "b", "c", "d", "f"]
    assert "Not run: e (top-down pyramid, without lateral)." in text
    tables, text = parsed(write_report([tmp_path], tmp_path / "out", all_rows=True))
    assert list(tables["Table 1 on shapes"]) == ["a", "b", "c", "d", "e", "f"]
    assert "Not run" not in text


def test_headings_and_names_of_figures_are_short_and_a_line_below_has_all_settings(tmp_path: Path) -> None:
    sizes = "with --model.detector.rpn.sizes {2: [32], 3: [64], 4: [128], 5: [256]}"
    given = [
        *("coco", "coco, with --model.detector.neck.channels 64", f"coco, {sizes}", "my sets/of dogs.yaml"),
        "coco" + ", with --model.detector.neck.channels 128" * 9,
    ]
    for number, data in enumerate(given):
        run(tmp_path / f"{number}", ar(0.5), data=data, curves=curves(0.5))
    run(tmp_path / "modern", ar(0.5), family="modern")
    path = write_report([tmp_path], tmp_path / "out")
    tables, text = parsed(path)
    assert set(tables) == {
        *("Report", "Table 1 on coco", "Table 1 on coco, channels 64", "Table 1 on coco, sizes …"),
        *("Table 1 on of dogs.yaml", "Table 1 on coco" + ", channels 128" * 9),
        "Table 1 on coco, modern recipe",
    }
    assert "ours - paper" in tables["Table 1 on coco, channels 64"]["c"]
    assert "ours - paper" not in tables["Table 1 on of dogs.yaml"]["c"]
    paragraphs = {token.content.replace("\\", "") for token in MarkdownIt().parse(text) if token.content}
    for data in given:
        assert any(line.startswith(f"Runs on {data}, by the paper's recipe. ") for line in paragraphs)
    figures = [figure.name for figure in path.parent.glob("*.png")]
    assert len(figures) == len(given)
    assert max(map(len, figures)) < 40
    assert all(f"]({figure})" in text for figure in figures)


def test_necks_are_a_table_of_their_own(tmp_path: Path) -> None:
    for row, ap in (("fpn", 0.371), ("bifpn", 0.38)):
        run(tmp_path / row, {"AP": ap, "AP50": 0.6}, table="necks", row=row, name=row.upper())
    tables, text = parsed(write_report([tmp_path], tmp_path / "out"))
    rows = tables["Necks on coco"]
    assert rows["bifpn"]["ours - ours (fpn)"]["AP"] == "+0.9"
    assert {key: row["ours"]["AP"] for key, row in rows.items()} == {"fpn": "37.1", "bifpn": "38.0"}
    assert "The paper's: " not in text
    assert "paper" not in rows["bifpn"]


def test_times_and_memory_keep_their_units(tmp_path: Path) -> None:
    cost = {"seconds": 0.0214, "peak_memory_mb": 1234.4}
    run(tmp_path / "time", cost, table="running_time", row="resnet50_fpn", setting="2 threads of a CPU")
    run(tmp_path / "figure", cost, table="fig1", row="image_pyramid", name="pyramid of images")
    tables, text = parsed(write_report([tmp_path], tmp_path / "out"))

    time = tables["Running time on coco"]["resnet50_fpn"]
    assert time["paper"]["seconds per image"] == "0.148"
    assert time["ours"]["seconds per image"] == "0.021"
    assert time["ours"]["peak memory (MB)"] == "1,234"
    assert "ours - paper" not in time, "the paper's times are of another machine"
    figure = tables["Figure 1 on coco"]["image_pyramid"]["ours"]
    assert (figure["seconds per image"], figure["peak memory (MB)"]) == ("0.021", "1,234")
    assert not {"AP", "AR@1000"} & figure.keys(), "times are no scores"
    assert "Order by" not in text
    assert "Measured on 2 threads of a CPU." in text


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"a": 0.2, "b": 0.1, "c": 0.3}, "3 rows: Kendall's tau 1.00; no pair inverted."),
        # Of three pairs one is tied: 2 / sqrt(3 × 2).
        ({"a": 0.2, "b": 0.2, "c": 0.3}, "3 rows: Kendall's tau 0.82; equal in ours alone: a = b."),
        ({"a": 0.2, "c": 0.2}, "2 rows: Kendall's tau undefined, as all rows are equal; equal in ours alone"),
    ],
)
def test_the_order_of_the_rows(tmp_path: Path, values: dict[str, float], line: str) -> None:
    run(tmp_path / "unfinished", None, row="f")
    for row, value in values.items():
        run(tmp_path / row, ar(value), row=row)
    assert line in write_report([tmp_path], tmp_path / "out").read_text()


def test_one_row_has_no_order(tmp_path: Path) -> None:
    run(tmp_path / "unfinished", None, row="f")
    run(tmp_path / "c", ar(0.3))
    run(tmp_path / "new", ar(0.4), row="new")
    assert "Order by" not in write_report([tmp_path], tmp_path / "out").read_text()


def test_tau_is_that_of_torchmetrics() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        size = int(random.integers(2, 8))
        one = {str(i): float(random.integers(5)) for i in range(size)}
        other = {str(i): float(random.integers(5)) for i in range(size) if i != 3}
        rows = [key for key in one if key in other]
        values = (torch.tensor([side[row] for row in rows]) for side in (one, other))
        tau = kendall_rank_corrcoef(*values, variant="b") if len(rows) > 1 else torch.nan
        signs = [
            (np.sign(one[x] - one[y]), np.sign(other[x] - other[y]))
            for x, y in itertools.combinations(rows, 2)
        ]
        order = compare_order(one, other)
        assert order.rows == len(rows)
        assert order.tau == pytest.approx(float(tau), nan_ok=True)
        assert len(order.inverted) == sum(a * b < 0 for a, b in signs)
        assert all(one[x] > one[y] and other[x] < other[y] for x, y in order.inverted)
        assert len(order.tied) == sum(a != 0 and b == 0 for a, b in signs)


def test_figures_show_every_row_that_has_curves(tmp_path: Path) -> None:
    for seed in range(2):
        run(tmp_path / f"c{seed}", ar(0.5), seed=seed, curves=curves(0.5 + 0.1 * seed))
    run(tmp_path / "d", ar(0.5), row="d", name="costs $1 or $2", curves=curves(0.3))
    run(tmp_path / "e", ar(0.5), row="e")
    for data in ("a b", "a_b"):  # two names that would make one file
        run(tmp_path / data, ar(0.5), data=data, curves=curves(0.5, limits=(1, 2)))
    path = write_report([tmp_path], tmp_path / "out")

    names = re.findall(r"!\[[^]]*\]\(([^)]*)\)", path.read_text())
    assert len(set(names)) == 3
    for name in names:
        with Image.open(path.parent / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        row_c, row_d, row_e = (
            (pixels == colour).all(axis=2).any()
            for colour in ((0x00, 0x9E, 0x73), (0xCC, 0x79, 0xA7), (0xE6, 0x9F, 0x00))
        )
        assert row_c
        assert row_d == (name == "table1_coco.png")
        assert not row_e


def test_lines_are_told_apart_without_their_colours_and_neighbours_with_them() -> None:
    styles = [line_style(number) for number in range(24)]
    assert len({(style["marker"], style["linestyle"]) for style in styles}) == 24
    assert all(one["color"] != other["color"] for one, other in itertools.pairwise(styles))


def test_all_figures_share_their_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the legend has names, no letters; with the key where two rows have one name."""
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        drawn.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    run(tmp_path / "low", ar(0.1), curves=curves(0.1), row="e")
    run(tmp_path / "high", ar(0.9), curves=curves(0.9), data="shapes")
    run(tmp_path / "own", ar(0.9), curves=curves(0.9), data="shapes", row="mine")
    write_report([tmp_path], tmp_path / "out")
    (limits,) = {(*axes.get_xlim(), *axes.get_ylim()) for figure in drawn for axes in figure.axes[:1]}
    assert limits[2] == 0
    assert limits[3] >= 100
    names = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
    assert names == [["top-down pyramid, without lateral"], ["FPN (c)", "FPN (mine)"]]


def test_the_same_run_twice_is_refused_and_a_folder_named_twice_is_not(tmp_path: Path) -> None:
    run(tmp_path / "one", ar(0.5))
    write_report([tmp_path, tmp_path / "one"], tmp_path / "out")
    run(tmp_path / "deep" / "other", None)
    with pytest.raises(
        InputError, match=r"deep/other and .*/one: both are table1, row c, seed 0 \(paper, coco\)"
    ):
        write_report([tmp_path], tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", '{"table": "tab', r"run\.json: not JSON"),
        ("run.json", "[]", r"run\.json: a JSON object is expected"),
        ("run.json", '{"table": "table1"}', r"run\.json: 'row' is missing"),
        ("scores.json", "\udcff", r"scores\.json: not JSON"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = run(tmp_path / "run", ar(0.5), curves=curves(0.5))
    (folder / file).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message) as caught:
        write_report([tmp_path], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_run_of_csv_files_and_another_in_the_folder_of_its_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("runs/one"), ar(0.5))
    assert report(["runs", "--csv", "csv"]) == 0
    Path("runs/one/scores.json").write_text(json.dumps(ar(0.9)))  # run once more
    for given in (["csv", "runs"], ["runs", "csv"]):
        with pytest.raises(InputError, match=r"/runs/one: both are table1, row c, seed 0"):
            read_runs(given)
    with pytest.raises(InputError, match="--csv runs: it has runs, which its CSV files would hide"):
        report(["runs", "--csv", "runs"])
    assert not Path("runs/runs.csv").exists()


def test_a_metric_of_ones_own_may_be_called_nearly_as_cocos(tmp_path: Path) -> None:
    run(tmp_path / "one", {"AP": 0.5, "AP_rare": 0.125, "ARea": 3.0}, table="table3")
    rows = parsed(write_report([tmp_path], tmp_path / "out"))[0]["Table 3 on coco"]
    ours = rows["c"]["ours"]
    assert (ours["AP"], ours["AP rare"], ours["ARea"]) == ("50.0", "0.125", "3")


def test_runs_of_a_table_that_is_not_known(tmp_path: Path) -> None:
    run(tmp_path / "run", ar(0.5), table="table9")
    with pytest.raises(InputError, match="its table 'table9' is unknown; there are table1"):
        write_report([tmp_path], tmp_path / "out")


def test_csv_files_hold_what_the_folders_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        scores = ar(0.1 + seed / 3) | {"proposal_AR@1000_large": None}
        run(Path(f"runs/c/{seed}"), scores, seed=seed, anchors=7, curves=curves(1 / 3))
    run(Path("runs/d"), None, row="d", name='one, "two"')
    run(Path("runs/e"), {"seconds": 0.1}, table="fig1", setting="2 threads")
    assert report(["runs", "--csv", "results"]) == 0
    assert sorted(path.name for path in Path("results").iterdir()) == [
        *("by_iou.csv", "by_limit.csv", "by_size.csv", "runs.csv")
    ]
    for folder_run, csv_run in zip(read_runs(["runs"]), read_runs(["results"]), strict=True):
        assert folder_run[:-2] == csv_run[:-2]
        for one, other in ((folder_run.scores, csv_run.scores), (folder_run.curves, csv_run.curves)):
            assert flat(one) == pytest.approx(flat(other), nan_ok=True, rel=0, abs=0)
    texts = [write_report([folder], f"{folder}_report").read_text() for folder in ("runs", "results")]
    assert texts[0] == texts[1]
    # More runs can be added to such a folder: what is there stays as it is written.
    assert report(["results", "--csv", "again"]) == 0
    for path in Path("results").glob("by_*.csv"):
        assert path.read_text() == Path("again", path.name).read_text()


def flat(numbers: Any) -> list[float]:
    """All numbers of scores or curves, in an order of their names."""
    if isinstance(numbers, dict):
        return [number for _, part in sorted(numbers.items()) for number in flat(part)]
    return [] if numbers is None else numbers if isinstance(numbers, list) else [numbers]


def test_the_script(tmp_path: Path) -> None:
    run(tmp_path / "runs" / "c", ar(0.5), curves=curves(0.5))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "runs"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Table 1 on coco" in done.stdout
    assert "56.3" in done.stdout
    assert "written to report/report.md" in done.stdout
    assert (tmp_path / "report" / "table1_coco.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["nowhere"], InputError, "nowhere: no such folder; give folders of runs"),
        (["empty"], InputError, "empty: no run.json in it or below it; give folders of runs"),
        (["runs", "--out", "runs/c/run.json"], FileExistsError, "runs/c/run.json"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    arguments: list[str],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("runs/c"), ar(0.5))
    Path("empty").mkdir()
    with pytest.raises(error, match=message):
        report(arguments)


def test_numbers_survive_the_way_through_csv(tmp_path: Path) -> None:
    """What is no number does not get in their way; those of a metric of the user's have a column."""
    more = {"count_error": 1.25, "confusion": [[1, 2], [3, 4]], "note": "text"}
    run(tmp_path / "runs" / "c", ar(0.5) | more, curves=curves(0.4))
    assert report([str(tmp_path / "runs"), "--csv", str(tmp_path / "csv")]) == 0
    (one,), (other,) = read_runs([tmp_path / "runs"]), read_runs([tmp_path / "csv"])
    expected = {"proposal_AR@100": 0.25, "proposal_AR@1000": 0.5, "count_error": 1.25}
    assert one.scores == other.scores == expected
    lines = write_report([tmp_path / "csv"], tmp_path / "report").read_text().splitlines()
    (heading,) = (line for line in lines if line.startswith("| row |"))
    assert heading.endswith("| count error |")
    assert any("| ours |" in line and line.endswith("| 1.25 |") for line in lines)


def test_differences_of_the_same_seeds_have_a_confidence_interval(tmp_path: Path) -> None:
    """SciPy's of a paired t test, over the seeds that both have."""
    stats = pytest.importorskip("scipy.stats")
    fpn, others = [0.30, 0.34, 0.31, 0.33], [0.33, 0.35, 0.325, 0.34]
    for row, seeds in (("fpn", range(4)), ("bifpn", range(4)), ("pafpn", range(1, 4)), ("carafe", range(2))):
        for seed in seeds:
            ap = fpn[seed] if row == "fpn" else others[seed]
            run(tmp_path / row / str(seed), {"AP": ap}, table="necks", row=row, name=row, seed=seed)
    rows = parsed(write_report([tmp_path], tmp_path / "out"))[0]["Necks on coco"]
    interval = stats.ttest_rel(others, fpn).confidence_interval(0.95)
    half = 50 * (interval.high - interval.low)
    assert rows["bifpn"]["ours - ours (fpn)"]["AP"] == f"+1.6 ± {half:.1f}"
    interval = stats.ttest_rel(others[1:], fpn[1:]).confidence_interval(0.95)
    half = 50 * (interval.high - interval.low)
    assert rows["pafpn"]["ours - ours (fpn)"]["AP"] == f"+1.2 ± {half:.1f} (n = 3)"
    assert rows["carafe"]["ours - ours (fpn)"]["AP"].endswith(" (n = 2)")
    for degrees, passed in enumerate(_T, 1):
        assert passed == pytest.approx(stats.t.ppf(0.975, degrees), abs=5e-4)
