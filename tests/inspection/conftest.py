"""The files and vocabularies of the data tests."""

from tests.data.conftest import small_vocabulary, write_lines

__all__ = ["small_vocabulary", "write_lines"]
