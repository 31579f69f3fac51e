"""Readers of data that users have at home."""
