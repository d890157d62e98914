"""A page as a browser takes it: what it says, and what it would load."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

_VOID = {"meta", "img", "br"}
_CLOSED_BY_NEXT = {"td", "th", "tr"}


class Page(HTMLParser):
    """A page that has been read; it fails on a tag that nothing has opened."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.text = ""
        self.loads: list[str] = []
        self.pictures = 0
        self.figures = 0
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open, "a tag is left open"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data") and value and value[0] != "#":
                if value.startswith("data:image/jpeg;base64,"):
                    self.pictures += 1
                else:
                    self.loads.append(value)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.figures += tag == "svg" and ("role", "img") in attributes
        if tag in ("link", "iframe", "object", "embed"):
            self.loads.append(tag)
        if tag not in _VOID | _CLOSED_BY_NEXT:
            self._open.append(tag)
            if tag in ("h1", "h2", "h3"):
                self.headings.append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID | _CLOSED_BY_NEXT:
            assert self._open, f"</{tag}> closes nothing"
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        here = self._open[-1] if self._open else ""
        if here in ("style", "script"):
            if "url(" in data or "@import" in data or "http" in data or "fetch(" in data:
                pytest.fail("the page loads something")
            return
        self.text += data
        if here in ("h1", "h2", "h3"):
            self.headings[-1] += data
        in_table = here in ("tbody", "thead", "table", "button", "span")
        if in_table and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def page_of(path: Path) -> Page:
    """The page, which has to be small and to load nothing."""
    assert path.stat().st_size < 500_000
    page = Page(path)
    assert page.loads == []
    return page
