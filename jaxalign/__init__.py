"""Offline alignment of T5 encoder-decoder models from logged feedback.

Importing the package costs nothing; import the part you need: `jaxalign.losses`,
`jaxalign.networks`, `jaxalign.objectives`, `jaxalign.data`, `jaxalign.training`,
`jaxalign.evaluation`.
"""

__version__ = "0.1.0"
