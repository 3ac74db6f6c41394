"""Pages for people: one self-contained HTML file, no network, no script."""

from nextvec.report.page import write_page

__all__ = ["write_page"]
