"""Metrics, intervals, calibration and paired tests."""
