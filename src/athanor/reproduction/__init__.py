"""Results that others can check: measured, written beside the experiment, made again from that file alone."""
