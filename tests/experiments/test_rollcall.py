"""The roll call before JAX starts: who is missing is named, by all that came."""

import concurrent.futures
import socket

import pytest

from experiments import distributed, rollcall


def free_port() -> int:
  with socket.create_server(("", 0)) as server:
    return server.getsockname()[1]


def meet(numbers, count: int, timeout: float = 20.0) -> list[str | None]:
  """What each of the processes `numbers` hears: why there is no start, or None."""
  port = free_port()

  def one(number: int) -> str | None:
    try:
      return rollcall.meet(f"127.0.0.1:{port}", number, count, timeout)
    except rollcall.StartError as error:
      return str(error)

  with concurrent.futures.ThreadPoolExecutor(len(numbers)) as pool:
    return list(pool.map(one, numbers))


def test_all_come():
  assert meet([3, 0, 1, 2], 4) == [None] * 4


def test_those_missing_are_named_to_all_that_came():
  said = meet([0, 2], 4, timeout=1.0)
  assert all("processes 1, 3 of 4 did not come within 1 s" in reason for reason in said)


def test_a_coordinator_that_is_not_there(monkeypatch):
  monkeypatch.setattr(rollcall, "_TIMEOUT", 0.2)
  (reason,) = meet([1], 2, timeout=0.3)
  assert "process 1 of 2 did not reach process 0 at 127.0.0.1:" in reason


def test_two_of_one_number_and_another_count():
  assert all("two processes are number 1" in reason for reason in meet([0, 1, 1], 4))
  port = free_port()
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    calls = [
      pool.submit(rollcall.meet, f"127.0.0.1:{port}", i, n, 20.0) for i, n in ((0, 3), (2, 5))
    ]
    for call in calls:
      with pytest.raises(rollcall.StartError, match="number 2 of 5, but there are to be 3"):
        call.result()


def test_a_port_in_use_and_a_bad_address():
  with socket.create_server(("", 0)) as server:
    port = server.getsockname()[1]
    with pytest.raises(rollcall.StartError, match=f"cannot listen on port {port}"):
      rollcall.meet(f"127.0.0.1:{port}", 0, 2, 1.0)
  with pytest.raises(ValueError, match="must be HOST:PORT"):
    rollcall.meet("node0", 0, 2, 1.0)


SLURM = {
  "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "node[003-004]", "SLURM_NTASKS": "2",
  "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip
MARKS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JOB_COMPLETION_INDEX")


@pytest.mark.parametrize(
  ("environment", "expected"),
  [
    ({}, None),
    (SLURM, ("node003:61441", 1, 2, [0])),
    (SLURM | {"SLURM_NTASKS": "1"}, None),
    (
      {
        "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
      },
      ("10.96.0.1:62624", 3, 4, [1]),
    ),
  ],
)  # fmt: skip
def test_launchers_are_recognised(monkeypatch, environment, expected):
  for name in MARKS:
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  assert distributed.detect() == expected


def test_a_launcher_that_jax_cannot_read_is_not_run_as_one_process(monkeypatch):
  for name in MARKS:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
  monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
  with pytest.raises(ValueError, match="started by Kubernetes, .* give --coordinator=HOST:PORT"):
    distributed.detect()
