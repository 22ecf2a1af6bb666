"""Numbers and tables in text, for people."""
