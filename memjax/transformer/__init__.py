"""Transformers as stacks of memories."""

from memjax.transformer import rope_scaling
from memjax.transformer.attention import Attention
from memjax.transformer.chunked import Chunked
from memjax.transformer.conformer import Conformer
from memjax.transformer.decode import Generated
from memjax.transformer.feed_forward import FeedForward
from memjax.transformer.generate import generate
from memjax.transformer.language_model import LanguageModel
from memjax.transformer.prefill import prefill, with_room
from memjax.transformer.rotary import Rotary
from memjax.transformer.skip import Skip
from memjax.transformer.stack import Stack

__all__ = [
  "Attention", "Chunked", "Conformer", "FeedForward", "Generated", "LanguageModel",
  "Rotary", "Skip", "Stack", "generate", "prefill", "rope_scaling", "with_room",
]  # fmt: skip
