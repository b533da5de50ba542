"""Kernels compiled for the CPU; :mod:`service.engine.kernels` decides whether they are used."""
