"""Training curves for TensorBoard and Weights & Biases, beside the metrics; off by default."""
