"""Memories of a few slots that a network reads and rewrites."""

from memjax.slots.ama import AdaptiveMemoryAllocator
from memjax.slots.chime import CHIME, CHIMEState
from memjax.slots.conformer_ntm import ConformerNTM
from memjax.slots.dnc import DifferentiableNeuralComputer, DNCLinks, DNCState
from memjax.slots.elmur import ELMUR, ELMURState
from memjax.slots.kv_memnn import KeyValueMemoryNetwork, KeyValueState
from memjax.slots.lm2 import LM2, LM2State
from memjax.slots.lrua import LRUAMemory, LRUAState
from memjax.slots.membart import MemBART, slots_as_tokens
from memjax.slots.memformer import Memformer
from memjax.slots.memn2n import EndToEndMemoryNetwork, MemN2NState
from memjax.slots.memo import MEMO, MEMOLosses, MEMOState
from memjax.slots.memoria import Memoria
from memjax.slots.memoria_layers import MemoriaRead
from memjax.slots.memory_networks import MemNNState, MemoryNetwork
from memjax.slots.ntm import NeuralTuringMachine, NTMState
from memjax.slots.pmi import PMI, PMIState
from memjax.slots.pmi_encoder import PMIEncoder
from memjax.slots.pointer import PointerMixtureNetwork, PointerState, pointer_targets
from memjax.slots.rmc import RelationalMemory, RelationalMemoryState
from memjax.slots.sat import SATState, SpatiallyAwareTransformer
from memjax.slots.segment_model import SegmentState
from memjax.slots.slot_attention import SlotRead

__all__ = [
  "MEMO",
  "MEMOLosses",
  "MEMOState",
  "ConformerNTM",
  "PMI",
  "PMIEncoder",
  "PMIState",
  "PointerMixtureNetwork",
  "PointerState",
  "pointer_targets",
  "ELMUR",
  "ELMURState",
  "DNCLinks",
  "DNCState",
  "DifferentiableNeuralComputer",
  "LM2",
  "LM2State",
  "EndToEndMemoryNetwork",
  "KeyValueMemoryNetwork",
  "KeyValueState",
  "LRUAMemory",
  "LRUAState",
  "MemN2NState",
  "MemNNState",
  "MemoryNetwork",
  "Memformer",
  "NTMState",
  "NeuralTuringMachine",
  "RelationalMemory",
  "RelationalMemoryState",
  "SegmentState",
  "SlotRead",
  "Memoria",
  "MemoriaRead",
  "MemBART",
  "slots_as_tokens",
  "AdaptiveMemoryAllocator",
  "SATState",
  "SpatiallyAwareTransformer",
  "CHIME",
  "CHIMEState",
]
