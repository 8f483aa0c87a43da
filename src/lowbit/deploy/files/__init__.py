"""The `.lowbit` file: packed codes, scales and the rest in floats, written and read without pickle."""
