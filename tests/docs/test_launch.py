"""The launch guide: its manifest has the structure that Kubernetes asks for, its flags exist."""

import re

import pytest
import yaml
from absl import flags

from experiments import distributed
from experiments.configs import text
from tests.docs.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "launch.md"


@pytest.fixture(scope="module")
def manifest():
  ((_, code),) = blocks(PAGE, "yaml")
  return yaml.safe_load(code)


def test_the_manifest_is_an_indexed_job_of_a_jobset(manifest):
  assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  (job,) = manifest["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert spec["completionMode"] == "Indexed" and spec["parallelism"] == spec["completions"]
  pod = spec["template"]["spec"]
  assert pod["restartPolicy"] == "Never" and spec["backoffLimit"] == 0
  (container,) = pod["containers"]
  mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
  assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
  (line,) = container["args"]
  assert f"--workdir={mounts['shared']}/" in line
  assert f"--num_processes={spec['completions']} " in line
  name = f"{manifest['metadata']['name']}-{job['name']}-0-0.{manifest['metadata']['name']}"
  assert f"--coordinator={name}:{container['ports'][0]['containerPort']}" in line


def test_every_flag_of_the_guide_exists():
  known = flags.FlagValues()
  before = set(known)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flags, "FLAGS", known)
    for kind in ("string", "integer", "float"):
      define = getattr(flags, f"DEFINE_{kind}")
      patch.setattr(
        flags,
        f"DEFINE_{kind}",
        lambda *args, define=define, **options: define(*args, **options, flag_values=known),
      )
    distributed.define_flags()
  names = (set(known) - before) | {"config", "workdir"}
  assert {"coordinator", "process_id", "start_timeout"} <= names
  code = "\n".join(body for language in ("sh", "yaml") for _, body in blocks(PAGE, language))
  own = re.findall(r"--([\w.]+)=", code[code.index("experiments.train") :])
  outside = {"zone", "worker", "command"}  # of gcloud
  table = re.findall(r"^\| `--(\w+)", PAGE.read_text(), re.M)
  used = {name for name in (*own, *table) if not name.startswith("config.")} - outside
  assert used <= names, used - names
  config = text.get_config()
  for field in {name for name in own if name.startswith("config.")}:
    part = config
    for word in field.split(".")[1:]:
      part = part[word]
