"""Edits that carry out a plan in the form that a target reads."""
