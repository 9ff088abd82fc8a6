"""The command line: `jaxalign COMMAND`, with T5X's gin flags and plain flags for every parameter."""
