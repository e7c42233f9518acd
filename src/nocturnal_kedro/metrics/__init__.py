"""Metrics are plain functions of reference and forecast that return unreduced values."""
