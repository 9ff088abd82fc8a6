"""Planning: the memory and time that a run needs on a TPU slice, found by compiling its step for that slice on any machine."""
