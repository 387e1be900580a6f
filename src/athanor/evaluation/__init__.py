"""What a trained model can do, measured with intervals: one task, one file."""
