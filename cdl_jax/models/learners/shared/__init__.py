"""Helpers of the learners."""
