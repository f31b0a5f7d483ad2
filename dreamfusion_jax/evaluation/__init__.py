"""Measures the quality of assets: views, judges, scores and reports."""
