"""Telling what a run has made: results, tables, pictures, the model card."""
