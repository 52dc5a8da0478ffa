"""What usually causes a finding, by `law:part`: said below it in a report."""

CAUSES = {
  "types:axes": (
    'a state field without leaf("name", ...), or with another number of names than axes after the '
    "batch."
  ),
  "types:shapes": (
    "a state that grows or changes its type (a list for a tuple, a scalar counter), or flags that "
    "change the result's type."
  ),
  "types:dtypes": (
    "a state computed in the dtype of x: cast it back to float32 before it is returned; cast y to "
    "x.dtype."
  ),
  "types:duplicates": (
    "one module or parameter stored under two attributes; store it once and call it twice."
  ),
  "split:values": (
    "something of the last call is missing in the state: a convolution's tail, a position, a "
    "previous output."
  ),
  "split:state": (
    "a counter or pointer that restarts or is written once a call instead of once a token."
  ),
  "split:decoding": (
    "a branch for T = 1 that computes something else, or a segment left open without being stored."
  ),
  "split:gradients": (
    "stop_gradient on the incoming or outgoing state (detach is the caller's), or a custom VJP "
    "without the state's gradient."
  ),
  "reset:flags": (
    "`if reset is not None` or `if valid is not None` leads to code that computes something else."
  ),
  "reset:values": (
    "a part of the state (position, previous read, convolution tail) that the reset forgets, or "
    "attention across it."
  ),
  "reset:state": (
    "the reset acts on the outputs but what came before stays in the state, or the state stops at "
    "the reset."
  ),
  "reset:gradients": (
    "the state after a reset is a constant (zeros, stop_gradient) where init_state depends on "
    "parameters."
  ),
  "reset:several": (
    "flags read in one row (reset[0]) or only the first or last reset of a call honoured."
  ),
  "reset:nan state": (
    "state * (1 - reset): NaN * 0 is NaN. Use core.select or where, also for entries that a mask "
    "hides from attention."
  ),
  "reset:overflow": (
    "where after exp, a square or a softmax: its backward pass is 0 * inf. Bound or `where` their "
    "inputs instead."
  ),
  "padding:values": (
    "padding is written to the state, counted as a position, or seen by a neighbour (convolution, "
    "attention)."
  ),
  "padding:gradients": (
    "padding's activations reach a parameter's gradient: mask the input (core.clean), not the "
    "output."
  ),
  "padding:nan": (
    "x of padding is multiplied by 0 instead of replaced: begin with x = core.clean(x, valid)."
  ),
  "padding:nan gradients": (
    "padding is masked after it was used: its NaN times a zero cotangent is NaN. Begin with "
    "core.clean."
  ),
  "padding:nothing valid": (
    "the state moves (decay, a pointer) once a call or a token, whatever valid says, or 0 / 0 in "
    "a masked mean."
  ),
  "padding:reset": "reset and valid combined with `and`: a reset counts on padding too.",
  "causality:values": (
    "a mean, norm, sort or convolution over time that reaches to the right of t; a mask that is "
    "off by one."
  ),
  "rows:permuted": (
    "the row's index is used, or an axis is taken for the batch by its position: see "
    "core.map_rows, core.select."
  ),
  "rows:nan": (
    "a mean, norm, maximum or sum over the batch axis, or one-hot products over rows: 0 * NaN is "
    "NaN."
  ),
  "implementations:values": "the faster form leaves out a term, or a chunk's border.",
  "implementations:gradients": (
    "a custom VJP that misses an input; the initial state's gradient is the usual one."
  ),
  "compile:init": (
    "init_state depends on being traced: NumPy's random numbers, a Python branch on values."
  ),
  "compile:once": (
    "init_state makes weakly typed leaves (jnp.full(shape, 0.0) without dtype) or a call changes "
    "an attribute of the module."
  ),
  "compile:donation": (
    "two leaves of init_state are one array (zeros = ...; State(zeros, zeros)), or a leaf is a "
    "parameter itself."
  ),
  "sharding:axes": (
    "a parameter made without core.param, or a new name: use one of the table or add a rule for it."
  ),
  "sharding:values": (
    "a sum over a sharded axis without psum in shard_map, or an index that is local to a device."
  ),
  "sharding:gradients": "a shard_map whose backward pass lacks the psum of a replicated input.",
  "sharding:state": (
    "the state's logical axes do not follow from its parameters' ones; constrain the new state "
    "where it is made."
  ),
  "remembers:accuracy": (
    "nothing is carried, or it fades too fast; if the mechanism only needs other settings, give a "
    "Task."
  ),
  "remembers:twin": "the query's call holds the answer: it reaches the output without the state.",
}
