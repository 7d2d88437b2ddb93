"""Distillation schemes of detectors."""
