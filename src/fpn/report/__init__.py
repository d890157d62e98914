"""A report of a test: one page that needs nothing else, and its curves as a picture."""

from fpn.report.page import Reported, input_scales, write_report

__all__ = ["Reported", "input_scales", "write_report"]
