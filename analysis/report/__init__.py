"""The report: one HTML file of some runs, with every view linked, that opens offline in any browser."""
