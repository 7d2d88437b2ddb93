"""Copies a run's measurements for other tools, which `config.log.to` names.

The tools are TensorBoard, CSV, Weights & Biases and MLflow.
"""
