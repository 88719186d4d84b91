"""Logging a training to where others look: TensorBoard's files, an MLflow server. Neither has to be installed."""
