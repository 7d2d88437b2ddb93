"""Runners of the VkD fixtures of detection: matching, losses, distillation, optimizer and training steps.

A runner maps (config, arrays) to {"out/..." or "grad/...": array}.
"""

RUNNERS = {}
