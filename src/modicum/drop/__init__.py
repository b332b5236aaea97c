"""Whole groups of weights gone."""
