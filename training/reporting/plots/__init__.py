"""Pictures of a run, made from its results: PNG files that read well at 700 pixels."""
