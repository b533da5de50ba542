"""From files to checked rows: what may be learned from, and everything that is wrong with it."""
