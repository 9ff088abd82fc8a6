"""Generative retrieval: items get identifiers that a policy learns to write (CART, earlier ACE, arXiv 2406.17507).

An identifier is coarse to fine: a cluster, codes of what is left of the vector, and a counter for items that share them.
"""
