"""Evaluation: generation, judges, win rates, ranking, calibration, plots and reports."""
