"""The figures of a report: PNG with matplotlib, and interactive ones with plotly."""
