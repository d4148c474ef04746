"""Small real programs with torch.distributed, and what measures them."""
