"""Measuring what a run has made: figures, baselines, and a judge."""
