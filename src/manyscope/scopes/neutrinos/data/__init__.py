"""From pulses to prepared events: sources, validation, preparation, loading."""
