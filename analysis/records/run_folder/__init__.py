"""The folder of a run that deltaw records: its format, writing, locking, checking and repairing."""
