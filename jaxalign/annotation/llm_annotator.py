"""The annotator `llm`. It is apart from `llm_judge`, because judges use that module and annotators use judges."""

from __future__ import annotations

from jaxalign.annotation.annotators import register_annotator
from jaxalign.annotation.llm_judge import LLMJudge

register_annotator("llm")(LLMJudge)
