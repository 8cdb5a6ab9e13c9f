"""Two-stage retrieval and what is measured of it: describe -> index -> rerank -> results.json, report.html."""
