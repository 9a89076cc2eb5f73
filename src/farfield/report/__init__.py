"""A self-contained HTML report on what a model does, from sections kept in a registry."""

from farfield.report.build import ReportResult, build_report
from farfield.report.registry import SECTIONS, Section, section

__all__ = ["SECTIONS", "ReportResult", "Section", "build_report", "section"]
