"""The gate before an alias: what a version has to show, by the engine itself, before everybody gets it."""
