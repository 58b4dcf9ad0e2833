"""Metrics, traces and logs, and the pages that show them."""
