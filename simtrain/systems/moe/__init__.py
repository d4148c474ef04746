"""Systems that train mixtures of experts."""
