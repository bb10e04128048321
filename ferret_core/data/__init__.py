"""Grounded data: the record format, and sources of records."""
