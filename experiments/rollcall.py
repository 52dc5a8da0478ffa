"""Who is there: all processes meet at the coordinator's address before JAX starts, so that whoever
does not come can be named.

JAX itself only says that its deadline was exceeded, and aborts. Process 0 listens; every other one
connects and sends a line, `memjax PROCESS OF`; when all have come, or the time is up, each gets one
line of JSON, the reason why there is no start, or null.
"""

import contextlib
import json
import selectors
import socket
import time

_TIMEOUT = 5.0  # seconds for a line of a process that has connected


class StartError(RuntimeError):
  """The processes of a run did not come together; the message says why."""


def meet(coordinator: str, process: int, count: int, timeout: float) -> None:
  """Returns when all `count` processes have come to `coordinator`, "HOST:PORT".

  Raises:
    StartError: some did not within `timeout` seconds; two have one number; the address is of no
      use. All that came raise alike.
    ValueError: the address is not HOST:PORT.
  """
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdigit():
    raise ValueError(f"--coordinator={coordinator} must be HOST:PORT, such as node0:8476")
  deadline = time.monotonic() + timeout
  if process == 0:
    reason = _listen(int(port), count, deadline, timeout)
  else:
    reason = _report(host.strip("[]"), int(port), process, count, deadline, timeout)
  if reason is not None:
    raise StartError(reason)


def _listen(port: int, count: int, deadline: float, timeout: float) -> str | None:
  with contextlib.ExitStack() as stack:
    try:
      server = stack.enter_context(_server(port))
    except OSError as error:
      return (
        f"process 0 cannot listen on port {port} ({error.strerror}); give another --coordinator"
      )
    selector = stack.enter_context(selectors.DefaultSelector())
    selector.register(server, selectors.EVENT_READ)
    here: dict[int, socket.socket] = {}
    reason = None
    while len(here) < count - 1 and reason is None and time.monotonic() < deadline:
      for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
        if key.fileobj is server:
          peer = stack.enter_context(server.accept()[0])
          number = _number(peer, count)
          if number is None:
            continue  # somebody else
          if isinstance(number, str) or number in here:
            reason = number if isinstance(number, str) else f"two processes are number {number}"
            here.setdefault(-1, peer)
          else:
            here[number] = peer
            selector.register(peer, selectors.EVENT_READ, number)
        else:  # it has nothing to say: it has gone
          selector.unregister(key.fileobj)
          here.pop(key.data)
    missing = sorted(set(range(1, count)) - set(here))
    if missing and reason is None:
      reason = f"{_named(missing)} of {count} did not come within {timeout:.0f} s{_HINT}"
    for peer in here.values():
      with contextlib.suppress(OSError):
        peer.sendall(json.dumps(reason).encode() + b"\n")
        peer.settimeout(_TIMEOUT)
        peer.recv(1)  # its end: whoever closes first keeps the port, and JAX needs it here
    return reason


_HINT = "; look at how they were started, at what they printed, and at the network between them"


def _report(host: str, port: int, process: int, count: int, deadline: float, timeout: float):
  """What process 0 answers."""
  answer = ""
  while time.monotonic() < deadline + _TIMEOUT and not answer.endswith("\n"):
    try:
      with socket.create_connection((host, port), timeout=_TIMEOUT) as peer:
        peer.sendall(f"memjax {process} {count}\n".encode())
        peer.settimeout(max(_TIMEOUT, deadline + _TIMEOUT - time.monotonic()))
        answer = _line(peer)
      reason = json.loads(answer)
      return reason if reason is None else str(reason)
    except (OSError, ValueError):
      answer = ""
      time.sleep(0.2)
  return (
    f"process {process} of {count} did not reach process 0 at {host}:{port} within {timeout:.0f} s"
    f"{_HINT}"
  )


def _server(port: int) -> socket.socket:
  if socket.has_dualstack_ipv6():
    with contextlib.suppress(OSError):  # IPv6 may be off
      return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(("", port))


def _number(peer: socket.socket, count: int) -> int | str | None:
  """The number of a process that has connected, or what is wrong with it; None: it is none."""
  peer.settimeout(_TIMEOUT)
  try:
    word, number, of = _line(peer).split()
    number, of = int(number), int(of)
  except (OSError, ValueError):
    return None
  if word != "memjax":
    return None
  if of != count or not 0 < number < count:
    return f"a process came as number {number} of {of}, but there are to be {count}"
  return number


def _line(peer: socket.socket) -> str:
  data = b""
  while not data.endswith(b"\n") and len(data) < 4096:
    part = peer.recv(4096)
    if not part:
      break
    data += part
  return data.decode()


def _named(numbers: list[int]) -> str:
  return ("process " if len(numbers) == 1 else "processes ") + ", ".join(map(str, numbers))
