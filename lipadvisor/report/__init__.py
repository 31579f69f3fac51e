"""A run as one HTML file: figures drawn here, text and tables in ``page.html``, nothing loaded from elsewhere."""

from lipadvisor.report.page import endangered_trials, write_report

__all__ = ["endangered_trials", "write_report"]
