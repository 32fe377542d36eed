"""How long a step takes at least: by what is computed, moved in memory and sent."""

from dataclasses import dataclass

from imprint_jax.planning.hlo import Collective
from imprint_jax.planning.plan import Plan
from imprint_jax.runtime.accelerators import UTILISATION, Accelerator

# The share of memory that a step may fill. Ours.
USABLE_MEMORY = 0.9


@dataclass(frozen=True)
class Roofline:
    """A plan on one kind of accelerator: seconds of a step by what takes them, and if it fits."""

    fits: bool
    compute: float
    memory: float
    network: float

    @property
    def step(self) -> float:
        """Seconds: products and memory traffic overlap, the network does not."""
        return max(self.compute, self.memory) + self.network


def roofline(plan: Plan, accelerator: Accelerator, utilisation: float = UTILISATION) -> Roofline:
    """The time of a step.

    compute is a device's share of the FLOPs at `utilisation` of the peak. memory is the plan's
    traffic at the full bandwidth. network is what each collective sends, at the bandwidth of the
    slowest link its group has: between machines, that of the adapters of all of a group's devices
    in one, each of which carries a ring (NCCL).
    """
    return Roofline(
        fits=not plan.out_of_memory and plan.peak <= USABLE_MEMORY * accelerator.memory,
        compute=plan.flops / plan.devices / (utilisation * accelerator.flops),
        memory=plan.traffic / accelerator.bandwidth,
        network=sum(c.sent / _bandwidth(c, plan, accelerator) for c in plan.collectives),
    )


def _bandwidth(collective: Collective, plan: Plan, accelerator: Accelerator) -> float:
    """Bytes a second that a device sends in its group; devices are numbered along "fsdp" first."""
    node, fsdp = accelerator.node, plan.request.mesh["fsdp"]
    if (plan.devices if "data" in collective.axes else fsdp) <= node:
        return accelerator.link
    in_node = node if "fsdp" in collective.axes else max(node // fsdp, 1)
    return min(accelerator.link, accelerator.network * in_node)
