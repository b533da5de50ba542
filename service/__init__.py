"""Serves adapters over HTTP: one frozen base, one engine process, every tenant in the same batch."""
