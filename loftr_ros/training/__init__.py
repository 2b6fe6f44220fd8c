"""Training: data made on the fly, the paper's losses, distillation, the loop."""
