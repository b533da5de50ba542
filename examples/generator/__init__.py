"""Makes the example rows from the handwritten material next door."""
