"""What a data file holds, and the settings that suit it: `jaxalign inspect`."""
