"""Offline alignment of T5 encoder-decoder models from logged feedback.

Importing the package loads nothing else. Import the part that you need: `jaxalign.losses`,
`jaxalign.networks`, `jaxalign.objectives`, `jaxalign.data`, `jaxalign.training`,
`jaxalign.evaluation`.
"""

__version__ = "0.1.0"
