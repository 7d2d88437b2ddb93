"""Copies of a run's measurements in TensorBoard, CSV, Weights & Biases and MLflow: `config.log.to`."""
