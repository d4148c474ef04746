"""Dense transformers."""
