"""Training that saves its states: how often, where to, and what a save costs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from simtrain.engine.save_path import Saving
from simtrain.errors import InputError
from simtrain.policy.checkpointing import interval_of, whole_steps
from simtrain.systems.degraded_step import Steps
from simtrain.systems.training import TransformerTraining
from simtrain.units import Seconds


class CheckpointedTraining(TransformerTraining):
    """Parameters of saves to storage and to memory, and what follows from them."""

    checkpoint_policy: Literal["fixed", "young", "daly_first_order", "daly"] = "fixed"
    """How the interval between saves to storage is chosen, see :mod:`simtrain.policy.checkpointing`."""
    checkpoint_interval: Seconds = Field(default=1800.0, gt=0)
    """Work between saves under the fixed policy, rounded to whole steps. [s]"""
    is_checkpoint_asynchronous: bool = False
    """Hold training up only while states are copied to the host; they reach storage behind it."""
    checkpoint_stall: Seconds | None = Field(default=None, ge=0)
    """What one save holds training up; by default what copying to the host, or writing to the cluster's storage, takes. [s]"""
    checkpoint_persist: Seconds | None = Field(default=None, ge=0)
    """From the end of the stall of an asynchronous save until it can be read; by default what writing to the cluster's storage takes. [s]"""
    checkpoint_load: Seconds | None = Field(default=None, ge=0)
    """Reading a save back; by default what reading from the cluster's storage takes. [s]"""
    bytes_per_parameter: float = Field(default=12.0, gt=0)
    """Saved: weights and two moments in fp32. [B]"""
    memory_steps: int = Field(default=0, ge=0)
    """Steps between saves into the memory of other nodes; 0: none."""
    memory_copies: int = Field(default=2, ge=1)
    """Nodes that hold each state, its own included."""
    memory_stall: Seconds | None = Field(default=None, ge=0)
    """What a save into memory holds training up; by default what copying to the host takes. [s]"""

    def saving(self, steps: Steps, mtbf: float) -> Saving:
        """Return what is saved, how often, and what it costs; intervals are whole steps.

        Parameters
        ----------
        steps
            Of the job.
        mtbf
            Mean time between interruptions, by which policies choose. [s]
        """
        self._refuse_unused()
        persist, stall = 0.0, self.checkpoint_stall
        if self.is_checkpoint_asynchronous:
            persist = self._storage_time(steps, "write") if self.checkpoint_persist is None else self.checkpoint_persist
        if stall is None:
            stall = self.host_time(steps) if self.is_checkpoint_asynchronous else self._storage_time(steps, "write")
        interval = self.checkpoint_interval
        if self.checkpoint_policy != "fixed":
            interval = interval_of(self.checkpoint_policy, stall, mtbf)
        count = whole_steps(interval, steps.step_time)
        if not self.memory_steps:
            return Saving(count * steps.step_time, 1, 0.0, stall, persist)
        memory_stall = self.host_time(steps) if self.memory_stall is None else self.memory_stall
        every = max(1, round(count / self.memory_steps))
        return Saving(self.memory_steps * steps.step_time, every, memory_stall, stall, persist)

    def _refuse_unused(self) -> None:
        """Refuse settings that would have no effect."""
        unused = {
            "checkpoint_persist": (self.checkpoint_persist is None or self.is_checkpoint_asynchronous, "is_checkpoint_asynchronous=true"),
            "checkpoint_interval": (self.checkpoint_policy == "fixed" or self._is_default("checkpoint_interval"), "checkpoint_policy=fixed"),
            "memory_copies": (self.memory_steps > 0 or self._is_default("memory_copies"), "memory_steps"),
            "memory_stall": (self.memory_steps > 0 or self._is_default("memory_stall"), "memory_steps"),
        }
        for name, (is_used, needed) in unused.items():
            if not is_used:
                raise InputError(f"{name}: has no effect without {needed}; set that too, or leave it out")

    def _is_default(self, name: str) -> bool:
        return getattr(self, name) == type(self).model_fields[name].default

    def _state_bytes(self, steps: Steps) -> float:
        return self.bytes_per_parameter * steps.workload.model.parameters()

    def _storage_time(self, steps: Steps, direction: Literal["read", "write"]) -> float:
        """Return the time in which all nodes together read or write the states once. [s]"""
        storage = steps.cluster.storage
        if storage is None:
            keys = "checkpoint_load" if direction == "read" else "checkpoint_stall, checkpoint_persist"
            raise InputError(f"cluster {steps.cluster.name}: has no storage, from which the time of a save follows; give cluster.storage, or {keys}")
        return self._state_bytes(steps) / (getattr(storage, direction) * steps.cluster.num_nodes)

    def host_time(self, steps: Steps) -> float:
        """Return the time in which all accelerators together copy the states to or from their hosts. [s]"""
        pcie = steps.cluster.node.pcie
        if pcie is None:
            raise InputError(f"node {steps.cluster.node.name}: has no pcie, from which the time of a copy follows; give checkpoint_stall and memory_stall")
        return pcie.latency + self._state_bytes(steps) / steps.cluster.num_accelerators / pcie.bandwidth

    def load_time(self, steps: Steps) -> float:
        """Return the time in which a save is read back from storage. [s]"""
        return self._storage_time(steps, "read") if self.checkpoint_load is None else self.checkpoint_load
