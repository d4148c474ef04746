"""What one GPU does: kernels, layers, optimizer, transfers and whole training steps, timed. Needs torch and the standard library alone."""
