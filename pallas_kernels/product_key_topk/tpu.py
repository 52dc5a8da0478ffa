"""placeholder"""


def product_key_topk(queries, keys, top_k):
  raise NotImplementedError("not yet")
