"""What the training benchmark measures: the work, the rivals and ours, each as something that takes a step."""
