"""Text in, batches of tokens out; no TensorFlow, no worker processes.

Two calls: `load` says which text, the corpus' methods say how it is cut into batches.

  corpus = memjax.data.load()                                 # the running Python's own library
  corpus = memjax.data.load("text", path="books/**/*.txt")    # any text files
  corpus = memjax.data.load("tfds", name="tiny_shakespeare")  # any TFDS set with a feature `text`

  batches = corpus.train_batches(sequence_length=256, batch_size=16, seed=0)  # endless
  batch = next(batches)
  position = batches.get_state()  # a dict of plain values (JSON) that belongs in the checkpoint
  batches.set_state(position)     # what follows is bit for bit what would have followed there
  batches.close()                 # ends the thread that reads ahead

  for batch in corpus.evaluation_batches(sequence_length=256, batch_size=16, max_tokens=100_000):
    ...                           # fixed order, every token counted once; has a len()

A batch is a dict of numpy arrays, B rows (of this process) and T = sequence_length:

  inputs   [B, T] int32. Tokens.
  targets  [B, T] int32. The token that follows each input in its text. After a document's last
           token comes the next document's first (after the last document, that of the first
           one), so every token is a target exactly once.
  reset    [B, T] bool. The contract's flag: token t continues nothing that stands before it in
           this row, nor a state carried over from the last batch. True at document starts, and
           at the start of each row (`stream=False`) or stream.
  valid    [B, T] bool. The contract's flag, and the mask of the loss: False is padding (inputs
           and targets are 0 there).

Ways to cut (both methods take them):

  stream=False   Rows are windows of T tokens over the documents laid end to end; training
                 shuffles them, another permutation each epoch. The state starts anew in every
                 row: `reset[:, 0]` is True.
  stream=True    Row b of the next batch continues where row b of this one stopped, for states
                 carried over batches. Training lays the documents out in another order each
                 epoch.
  pack=True      Training only: rows hold whole documents, packed best-fit; one longer than T is
                 cut into rows and a rest. Nothing sees another document, and a document's last
                 token is no input, for nothing of the document follows it: every token but
                 the first of each document is a target once.
                 The share of places left empty is `batches.padding`.
  separator=id   With pack: the target after each document's last token, which is then an input.
  align=g        Documents are padded to a multiple of g (valid=False), so that resets fall on
                 multiples of g (a memory's granularity); T must be a multiple of g.
  shard_index, shard_count
                 This process gets rows [index * B / count, (index + 1) * B / count) of every
                 batch of B = `batch_size` rows: neither batches nor positions depend on the
                 number of processes.

A corpus has `vocab_size`, `tokenizer` (`encode(str) -> [N] array`, `decode(ids) -> str`),
`fingerprint` (equal text and tokenizer give equal ones), and `num_tokens[split]` and
`num_bytes[split]` for the splits "train" and "validation". Bits per byte are
`nats_per_token / ln 2 * num_tokens[split] / num_bytes[split]`.
"""

from memjax.data import positions
from memjax.data.corpus import Corpus, load
from memjax.data.packing import pack, resample
from memjax.data.tokenizer import ByteTokenizer, JSONTokenizer, Tokenizer, load_tokenizer

__all__ = [
  "ByteTokenizer",
  "Corpus",
  "JSONTokenizer",
  "Tokenizer",
  "load",
  "load_tokenizer",
  "pack",
  "positions",
  "resample",
]
