"""Where the platform runs and trains on more than one machine."""
