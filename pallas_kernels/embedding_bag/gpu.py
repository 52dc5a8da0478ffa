"""placeholder"""


def embedding_bag(values, ids, weights):
  raise NotImplementedError("not yet")


def dot_bag(values, ids, vectors):
  raise NotImplementedError("not yet")
