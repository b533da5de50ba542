"""Kernels compiled for the CPU: what engine and training both compute with.

They are plain C, built where they are needed (:mod:`~adapters.native.build`), and take addresses
(:mod:`~adapters.native.library`); whoever uses them falls back on torch where they cannot be had.
"""
