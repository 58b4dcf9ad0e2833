"""Records that remain of a run: JSON lines, TensorBoard, MLflow, report and picture."""
