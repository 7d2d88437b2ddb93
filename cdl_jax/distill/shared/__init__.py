"""Helpers of distillation schemes."""
