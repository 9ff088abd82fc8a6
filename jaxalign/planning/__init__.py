"""What a run will need on a TPU slice, found by compiling its step for that slice on any machine."""
