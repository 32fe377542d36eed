"""What a plan is: what one program needs of each device, and what is to be planned.

What each number is worth stands in docs/planning.md.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from imprint_jax import config as configs
from imprint_jax.errors import InputError
from imprint_jax.planning.hlo import Collective
from imprint_jax.runtime.accelerators import ACCELERATORS, TPU
from imprint_jax.training.sharding import check_batch_size

# Meshes up to this are compiled as they are. Larger ones are planned from one of `SMALL` devices,
# or twice as many: compile time grows with devices, a device's program hardly changes. Ours.
COMPILED_AT_MOST = 16
SMALL = 8

Mesh = dict[str, int]  # {"data": ..., "fsdp": ...}


@dataclass(frozen=True)
class Request:
    """What is to be planned.

    Attributes:
        recipe: As `config.load` takes it.
        overrides: Likewise, "--config.a.b=value".
        mesh: The devices.
        compiled: The mesh that is compiled in its place.
        accelerator: A name in `ACCELERATORS` whose compiler is used; None: XLA:CPU's estimate.
        sampling_batch: Pictures that are sampled together; None: a training step is planned.
    """

    recipe: str
    overrides: tuple[str, ...]
    mesh: Mesh
    compiled: Mesh
    accelerator: str | None = None
    sampling_batch: int | None = None


@dataclass(frozen=True)
class AttentionUse:
    """Attentions of one shape in a forward pass.

    Attributes:
        kernel: "cudnn" (flash), "chunked" or "plain".
        count: Times they run.
        queries, keys: Tokens.
        heads, width: Heads, and channels of each.
        dtype: "bfloat16"...
        why_not_flash: Empty for flash.
    """

    kernel: str
    count: int
    queries: int
    keys: int
    heads: int
    width: int
    dtype: str
    why_not_flash: str


@dataclass(frozen=True)
class Plan:
    """What one run of a program needs, on each of its devices unless said otherwise; in bytes.

    Attributes:
        request: What was to be planned.
        batch_size: Samples, over all devices.
        accumulation: Parts a batch is worked through in.
        total_steps: Of the training; 1 for the sampler.
        trained, frozen, average, moments, inputs: What lies in memory throughout: float32 masters,
            parameters that never change, the EMA, the optimizer's state, one batch.
        gradients: Of the trained parameters; part of `temporary`.
        temporary: Activations, gradients and all else that lives during a run, by the compiler.
        peak: At its fullest, by the compiler; resident memory included.
        traffic: Read from and written to memory.
        flops: Over all devices, recomputation counted.
        model_flops: The same without recomputation.
        attentions: Of one forward pass.
        library_calls: Functions of cuDNN, cuBLAS... and how often each is called.
        collectives: What travels between devices.
        compiler: "XLA:GPU of jaxlib 0.10.2..."
        compile_seconds: That compiling took.
        out_of_memory: What the compiler said where a device's memory does not do; traffic, library
            calls and collectives are not known then.
        key: Of what was compiled, see `kept_plans`.
    """

    request: Request
    batch_size: int
    accumulation: int
    total_steps: int
    trained: int
    frozen: int
    average: int
    moments: int
    inputs: int
    gradients: int
    temporary: int
    peak: int
    traffic: int
    flops: int
    model_flops: int
    attentions: tuple[AttentionUse, ...]
    library_calls: dict[str, int]
    collectives: tuple[Collective, ...]
    compiler: str
    compile_seconds: float
    out_of_memory: str
    key: str

    @property
    def devices(self) -> int:
        """How many."""
        return math.prod(self.request.mesh.values())

    @property
    def resident(self) -> int:
        """Bytes that stay from run to run."""
        return self.trained + self.frozen + self.average + self.moments + self.inputs

    @property
    def extrapolated(self) -> bool:
        """Whether another mesh was compiled than the one asked for."""
        return self.request.mesh != self.request.compiled

    @property
    def is_estimate(self) -> bool:
        """Whether the compiler was another chip's."""
        return self.request.accelerator is None

    def to_json(self) -> dict:
        """Of plain types, for `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict) -> "Plan":
        """What `to_json` returned, perhaps through a file."""
        request = fields["request"]
        return cls(
            **fields
            | {
                "request": Request(**request | {"overrides": tuple(request["overrides"])}),
                "attentions": tuple(AttentionUse(**x) for x in fields["attentions"]),
                "collectives": tuple(
                    Collective(**x | {"axes": tuple(x["axes"])}) for x in fields["collectives"]
                ),
            }
        )


def training_request(
    recipe: str,
    overrides: Sequence[str],
    devices: int,
    mesh: str | None = None,
    accelerator: str | None = None,
) -> Request:
    """A request for a recipe's training step.

    Args:
        recipe: As `Request`.
        overrides: As `Request`.
        devices: How many.
        mesh: "data=1,fsdp=8"; None: as the configuration says.
        accelerator: As `Request`.

    Raises:
        InputError: The mesh, the batch or the configuration does not fit, or nobody makes a slice
            of so many TPUs.
    """
    config = configs.Config.of(configs.load(recipe, overrides))
    shape = read_mesh(mesh, devices, config.fsdp)
    check_batch_size(config.batch_size, config.accumulation, devices)
    compiled = small_mesh(shape)
    _check_slice(accelerator, math.prod(compiled.values()))
    return Request(recipe, tuple(overrides), shape, compiled, accelerator)


def sampling_request(
    recipe: str, overrides: Sequence[str], batch: int, accelerator: str | None = None
) -> Request:
    """A request for sampling `batch` pictures together on one device; the rest as `Request`.

    Raises:
        InputError: The configuration does not fit, or the batch is not 1 or more.
    """
    config = configs.Config.of(configs.load(recipe, overrides))
    check_batch_size(config.batch_size, config.accumulation, 1)
    if batch < 1:
        raise InputError(f"A batch of {batch} pictures cannot be sampled; it must be 1 or more.")
    one = {"data": 1, "fsdp": 1}
    return Request(recipe, tuple(overrides), one, one, accelerator, batch)


def check_accelerator(name: str) -> None:
    """Refuses what `ACCELERATORS` does not have.

    Raises:
        InputError: It does not.
    """
    if name not in ACCELERATORS:
        names = ", ".join(ACCELERATORS)
        raise InputError(f"Unknown --accelerator {name}; it may be {names}.")


def _check_slice(accelerator: str | None, devices: int) -> None:
    chip = ACCELERATORS[accelerator].chip if accelerator else None
    if isinstance(chip, TPU) and devices not in chip.slices:
        sizes = ", ".join(map(str, chip.slices))
        raise InputError(
            f"There is no slice of {devices} {accelerator}; plans are made for slices of {sizes}"
            " chips, and for larger ones that these divide."
        )


def read_mesh(text: str | None, devices: int, fsdp: int) -> Mesh:
    """The mesh of "data=1,fsdp=8"; an axis left out is what remains.

    Args:
        text: None: `fsdp` as the configuration has it.
        devices: How many there are.
        fsdp: The configuration's; 0: all devices.

    Raises:
        InputError: Unknown axes, no numbers, or a product other than `devices`.
    """
    if devices < 1:
        raise InputError(f"--devices must be 1 or more, not {devices}.")
    mesh = {} if text else {"fsdp": fsdp or devices}
    for part in text.split(",") if text else ():
        axis, _, size = part.partition("=")
        if axis not in ("data", "fsdp"):
            raise InputError(f"--mesh has axes data and fsdp, as in data=2,fsdp=4; not {axis!r}.")
        if not size.isdecimal() or int(size) < 1:
            raise InputError(f"--mesh wants {axis}=NUMBER, not {part!r}.")
        mesh[axis] = int(size)
    for axis, other in (("data", "fsdp"), ("fsdp", "data")):
        if axis not in mesh:
            mesh[axis] = max(devices // mesh[other], 1)
    if mesh["data"] * mesh["fsdp"] != devices:
        raise InputError(
            f"A mesh of data={mesh['data']} times fsdp={mesh['fsdp']} is not {devices} devices."
        )
    return {"data": mesh["data"], "fsdp": mesh["fsdp"]}


def small_mesh(mesh: Mesh) -> Mesh:
    """The mesh that is compiled in place of a large one: every axis it has, still there."""
    if math.prod(mesh.values()) <= COMPILED_AT_MOST:
        return dict(mesh)
    fsdp = math.gcd(mesh["fsdp"], SMALL)
    if fsdp == 1 < mesh["fsdp"]:
        fsdp = 2
    data = max(SMALL // fsdp, 2) if mesh["data"] > 1 else 1
    return {"data": data, "fsdp": fsdp}
