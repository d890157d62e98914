import io
import math

from rich.console import Console
from rich.table import Table

from fpn.evaluation import box_table, category_table, proposal_table

BOXES = {
    "AP": 0.3794,
    "AP50": 0.589,
    "AP75": 0.4,
    "AP_small": 0.21,
    "AP_medium": 0.42,
    "AP_large": math.nan,
    "AR@1": 0.3,
    "AR@10": 0.5,
    "AR@100": 0.55,
    "AR_small": 0.33,
    "AR_medium": 1.0,
    "AR_large": math.nan,
}


def lines(table: Table) -> list[list[str]]:
    """The words of each line as a terminal of 80 columns shows them."""
    text = io.StringIO()
    Console(file=text, width=80).print(table)
    shown = text.getvalue().splitlines()
    assert max(map(len, shown)) <= 80
    return [line.replace("│", " ").replace("┃", " ").split() for line in shown]


def test_boxes() -> None:
    shown = lines(box_table(BOXES))
    assert ["all", "small", "medium", "large"] in shown
    assert ["AP", "37.9", "21.0", "42.0", "–"] in shown
    assert ["AP50", "58.9"] in shown
    assert ["AP75", "40.0"] in shown
    assert ["AR@1", "30.0"] in shown
    assert ["AR@10", "50.0"] in shown
    assert ["AR@100", "55.0", "33.0", "100.0", "–"] in shown


def test_proposals() -> None:
    areas = {"": 0.4, "_small": 0.1, "_medium": 0.5, "_large": math.nan}
    scores = {f"AR@{limit}{area}": value for limit in (100, 1000) for area, value in areas.items()}
    shown = lines(proposal_table(scores))
    assert ["AR@100", "40.0", "10.0", "50.0", "–"] in shown
    assert ["AR@1000", "40.0", "10.0", "50.0", "–"] in shown


def test_categories_are_shown_as_they_are_written() -> None:
    row = {key: BOXES[key] for key in ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")}
    shown = lines(category_table({"[bold]zebra": row, "a-name-without-any-space-" * 6: row}))
    assert ["[bold]zebra", "37.9", "58.9", "40.0", "21.0", "42.0", "–"] in shown
    assert ["category", "AP", "AP50", "AP75", "small", "medium", "large"] in shown
    assert sum("37.9" in words for words in shown) == 2
