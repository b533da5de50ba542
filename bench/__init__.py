"""Measurements of Tenora against what one would use instead. Start at `bench/serving.py`."""
