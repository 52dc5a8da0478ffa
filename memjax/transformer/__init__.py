"""Transformers as stacks of memories."""

from memjax.transformer.attention import Attention
from memjax.transformer.feed_forward import FeedForward
from memjax.transformer.language_model import LanguageModel
from memjax.transformer.stack import Stack

__all__ = ["Attention", "FeedForward", "LanguageModel", "Stack"]
