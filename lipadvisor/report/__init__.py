"""A run as one HTML file: figures drawn here, text and tables in ``page.html``, nothing loaded from elsewhere."""

from lipadvisor.report.page import write_report

__all__ = ["write_report"]
