"""Pure cost functions: hardware and sizes in, seconds out."""
