"""Compiling a program for a chip that this machine need not have, and reading a plan off it.

XLA's compilers for NVIDIA GPUs and for TPUs run without the chip. Where neither is installed,
XLA:CPU's program is an estimate. Nothing is allocated or run.
"""

import importlib.metadata
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from imprint_jax import config as configs
from imprint_jax.composing.compositor import generate
from imprint_jax.data import batch as batches
from imprint_jax.diffusion import sampling
from imprint_jax.errors import InputError
from imprint_jax.models import imprint
from imprint_jax.models.attention import Attention, Target, tracing_for
from imprint_jax.planning import hlo, kept_plans
from imprint_jax.planning.attentions import attentions
from imprint_jax.planning.plan import Mesh, Plan, Request
from imprint_jax.runtime.accelerators import ACCELERATORS, GPU, MULTIPROCESSORS, TPU, Accelerator
from imprint_jax.runtime.files import atomic_file
from imprint_jax.training import flops, sharding
from imprint_jax.training.state import Trainer, TrainState

# XLA:GPU's choices that want to measure on the device. Without the second flag it ends with
# "Couldn't find output tile sizes that satisfy hlo".
GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
# Only buffers and collectives are wanted of XLA:CPU: no machine code worth running. Without the
# second flag it merges recomputation with what it is to replace.
CPU_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_disable_hlo_passes=cse_barrier_expander"
    " --xla_force_host_platform_device_count={devices}"
)


def environment(request: Request) -> dict[str, str]:
    """What the process that compiles a request has in its environment."""
    if request.accelerator is None or installed_compiler(request.accelerator) is None:
        flags = CPU_FLAGS.format(devices=math.prod(request.compiled.values()))
    else:
        flags = GPU_FLAGS if target(request.accelerator).platform == "gpu" else ""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a cached program's text lacks what is read
        "XLA_FLAGS": flags,
        # libtpu asks the cloud's metadata server otherwise, and lets one process use it at a time.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def installed_compiler(accelerator: str | None) -> str | None:
    """The compiler for an accelerator and its version; None: its extra is not installed."""
    jaxlib = importlib.metadata.version("jaxlib")
    if accelerator is None:
        return f"XLA:CPU of jaxlib {jaxlib}"
    gpu = isinstance(ACCELERATORS[accelerator].chip, GPU)
    try:
        if gpu:
            plugin = importlib.metadata.version("jax-cuda13-plugin")
            cudnn = importlib.metadata.version("nvidia-cudnn-cu13")
            return f"XLA:GPU of jax-cuda13-plugin {plugin} with cuDNN {cudnn}"
        return f"XLA:TPU of libtpu {importlib.metadata.version('libtpu')}"
    except importlib.metadata.PackageNotFoundError:
        return None


def gpu_description(accelerator: Accelerator) -> str:
    """XLA's description of a GPU: its `GpuTargetConfigProto` as text."""
    chip = accelerator.chip
    assert isinstance(chip, GPU)
    limits = MULTIPROCESSORS[chip.compute_capability]
    major, minor = chip.compute_capability.split(".")
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {chip.multiprocessors}
  fpus_per_core: {limits.float32_units}
  clock_rate_ghz: {chip.clock}
  device_memory_size: {int(accelerator.memory)}
  memory_bandwidth: {int(accelerator.bandwidth)}
  l2_cache_size: {chip.l2_cache}
  shared_memory_per_core: {limits.shared_memory}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {limits.shared_memory_per_block}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: {limits.threads}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{accelerator.device_kind}"
"""


def tpu_topology(chip: TPU, devices: int) -> dict:
    """Arguments of `topologies.get_topology_desc` for a slice of TPUs."""
    shape = chip.slices[devices]
    name = f"{chip.generation}:{shape}"
    options: dict[str, Any] = {"chip_config_name": "megacore"} if chip.megacore else {}
    if devices == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    return dict(topology_name=name, platform="tpu", **options)


def target(accelerator: str | None) -> Target:
    """What networks are built for."""
    if accelerator is None:
        return Target()
    chip = ACCELERATORS[accelerator].chip
    return Target("gpu", chip.compute_capability) if isinstance(chip, GPU) else Target("tpu")


def make_devices(accelerator: str | None, count: int) -> list:
    """Devices to compile for, which need not be there; None: this process's own."""
    if accelerator is None:
        return jax.devices()[:count]
    chosen = ACCELERATORS[accelerator]
    if isinstance(chosen.chip, GPU):
        return topologies.get_topology_desc(
            platform="cuda", target_config=gpu_description(chosen), topology=f"1x{count}x1"
        ).devices
    return topologies.get_topology_desc(**tpu_topology(chosen.chip, count)).devices


@dataclass(frozen=True)
class Traced:
    """A program, ready to be compiled, and what is known of it before.

    Attributes:
        program: From `jax.jit(...).trace`.
        arguments: The shapes and shardings it was traced with.
        forward: The jaxpr of its networks' forward pass.
        config: The configuration it is of, with as many samples a device as were requested.
        state: {"trained": ..., "frozen": ..., "average": ..., "moments": ...}: bytes on a device.
        inputs: Bytes of a batch on a device.
        flops: Of all devices, recomputation counted.
        model_flops: The same without recomputation.
    """

    program: jax.stages.Traced
    arguments: tuple
    forward: jax.extend.core.Jaxpr
    config: configs.Config
    state: dict[str, int]
    inputs: int
    flops: int
    model_flops: int


def trace_training_step(request: Request, mesh: jax.sharding.Mesh, chip: Target) -> Traced:
    """The training step of `Request.compiled`, with as many samples a device as requested."""
    config = configs.Config.of(configs.load(request.recipe, request.overrides))
    falls_back = not chip.flash_width and config.attention == "cudnn"
    config = replace(
        config,
        fsdp=request.compiled["fsdp"],
        batch_size=config.batch_size * mesh.size // math.prod(request.mesh.values()),
        attention="auto" if falls_back else config.attention,
    )
    trainer = Trainer(config, mesh, chip)
    batch = batches.batch_spec(config, config.batch_size)
    spread = sharding.batch_sharding(mesh)
    state = jax.tree.map(_placed, trainer.abstract_state, trainer.state_sharding)
    inputs = {key: _placed(x, spread) for key, x in batch.items()}
    program = trainer.train_step().trace(state, inputs)
    held = state_bytes(trainer.abstract_state, request.mesh)
    return Traced(
        program=program,
        arguments=(state, inputs),
        forward=trainer.validation_step().trace(state, inputs).jaxpr.jaxpr,
        config=config,
        state={
            "trained": held["trained"],
            "frozen": held["frozen"],
            "average": held["ema"],
            "moments": held["opt_state"],
        },
        inputs=sum(x.size * x.dtype.itemsize for x in batch.values()) // mesh.size,
        flops=flops.count_jaxpr(program.jaxpr.jaxpr),
        model_flops=trainer.model_flops(),
    )


def trace_sampler(request: Request, mesh: jax.sharding.Mesh, chip: Target) -> Traced:
    """The sampler as `Compositor` runs it, with the recipe's steps, for one view of the object."""
    config = configs.Config.of(configs.load(request.recipe, request.overrides))
    assert request.sampling_batch is not None
    config = replace(config, batch_size=request.sampling_batch)
    dtype = jnp.dtype(config.dtype)
    attention = Attention(chip, "auto" if config.attention == "cudnn" else config.attention)
    graphdef, params = imprint.split(config.model, dtype, attention=attention)
    cast = lambda tree, dtype: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)
    params = {
        name: cast(tree, jnp.float32 if name == "vae" else dtype) for name, tree in params.items()
    }
    b, side, crop = config.batch_size, config.image_size, config.object_size
    inputs = (
        jax.ShapeDtypeStruct((), jnp.float32),  # guidance scale
        jax.ShapeDtypeStruct((b, 3), jnp.uint32),  # seed, number of the sample, of the object
        jax.ShapeDtypeStruct((b, 1, crop, crop, 3), jnp.uint8),
        jax.ShapeDtypeStruct((b, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((b, side, side, 1), jnp.bool_),
    )
    how = config.sampling
    choices = sampling.Choices(how.num_steps, how.sampler, how.spacing)
    whole = NamedSharding(mesh, P())
    arguments = jax.tree.map(lambda x: _placed(x, whole), (params, *inputs))
    program = jax.jit(partial(generate, graphdef, config.diffusion, choices)).trace(*arguments)
    count = flops.count_jaxpr(program.jaxpr.jaxpr)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return Traced(
        program=program,
        arguments=arguments,
        forward=program.jaxpr.jaxpr,
        config=config,
        state={"trained": 0, "frozen": size(params), "average": 0, "moments": 0},
        inputs=size(inputs),
        flops=count,
        model_flops=count,
    )


def _placed(x: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def state_bytes(abstract_state: TrainState, mesh: Mesh) -> dict[str, int]:
    """Bytes on one device of each part of a training state: exact, for any mesh.

    Args:
        abstract_state: A `state.TrainState` of shapes.
        mesh: Sizes of "data" and "fsdp"; the devices need not be there.
    """
    where = sharding.state_sharding(
        jax.sharding.AbstractMesh(tuple(mesh.values()), tuple(mesh)), abstract_state
    )
    size = lambda x, spec: math.prod(spec.shard_shape(x.shape)) * x.dtype.itemsize
    total = lambda part: sum(jax.tree.leaves(jax.tree.map(size, *part)))
    parts = ("trained", "frozen", "ema", "opt_state")
    return {name: total((getattr(abstract_state, name), getattr(where, name))) for name in parts}


def make_plan(request: Request, folders: list[Path], say: Callable[[str], None]) -> Plan:
    """A plan, compiled now or kept from before; a new one is kept in the first folder.

    Args:
        request: What is to be planned.
        folders: Where plans are kept, if any.
        say: Is told what is being done.

    Raises:
        InputError: The accelerator's compiler is not installed, and no plan was kept.
    """
    say("tracing")
    compiler = installed_compiler(request.accelerator)
    traced = _trace(request, request.accelerator if compiler else None)
    key = _key(request, traced)
    if kept := kept_plans.find(folders, key, compiler):
        # What the program does not depend on is as requested.
        return replace(kept, request=request, total_steps=_total_steps(request, traced))
    if compiler is None:
        assert request.accelerator is not None  # XLA:CPU is always there
        extra = (
            "plan-gpu" if isinstance(ACCELERATORS[request.accelerator].chip, GPU) else "plan-tpu"
        )
        raise InputError(
            f"Compiling for {request.accelerator} wants pip install 'imprint_jax[{extra}]', and no"
            " such plan was kept; --estimate plans with the compiler for CPU."
        )
    say("compiling")
    plan = _compile(request, traced, compiler, key, folders[0] if folders else None)
    if folders:
        kept_plans.save(folders[0], plan)
    return plan


def _trace(request: Request, devices_of: str | None) -> Traced:
    """Traces for the request's chip, on devices of an accelerator or of this process (None)."""
    devices = make_devices(devices_of, math.prod(request.compiled.values()))
    mesh = jax.sharding.Mesh(
        np.array(devices).reshape(tuple(request.compiled.values())), tuple(request.compiled)
    )
    trace = trace_training_step if request.sampling_batch is None else trace_sampler
    chip = target(request.accelerator)
    with tracing_for(chip):
        return trace(request, mesh, chip)


def _key(request: Request, traced: Traced) -> str:
    if request.accelerator is None:
        description, flags = "cpu", CPU_FLAGS
    elif isinstance(chip := ACCELERATORS[request.accelerator].chip, GPU):
        description, flags = gpu_description(ACCELERATORS[request.accelerator]), GPU_FLAGS
    else:
        description, flags = str(tpu_topology(chip, math.prod(request.compiled.values()))), ""
    return kept_plans.digest(
        str(traced.program.jaxpr),
        str(traced.program.args_info),
        *(str(x.sharding.spec) for x in jax.tree.leaves(traced.arguments)),
        str((request.mesh, request.compiled)),
        *(description, flags, jax.__version__),
    )


def _total_steps(request: Request, traced: Traced) -> int:
    return traced.config.total_steps if request.sampling_batch is None else 1


def _compile(
    request: Request, traced: Traced, compiler: str, key: str, folder: Path | None
) -> Plan:
    """Compiles and reads; a program that cannot be read is left in `folder`, as text."""
    start = time.perf_counter()
    out_of_memory = ""
    resident = sum(traced.state.values()) + traced.inputs
    facts: dict[str, Any]
    facts = {"temporary": 0, "peak": 0, "traffic": 0, "library_calls": {}, "collectives": ()}
    chip = target(request.accelerator)
    with tracing_for(chip), tempfile.TemporaryDirectory() as dump:
        lowered = traced.program.lower()
        options = {"xla_dump_to": dump, "xla_dump_hlo_as_text": True}
        try:
            program = lowered.compile(options if chip.platform == "tpu" else None)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            out_of_memory = str(error).splitlines()[0]
        seconds = time.perf_counter() - start
        if not out_of_memory:
            printed = _printed(program, Path(dump))
            try:
                facts = _read(printed, program.memory_analysis(), request, traced, resident)
            except ValueError as error:
                if folder is None:
                    raise
                kept = folder / f"{key[:12]}.hlo.txt"  # it may have taken an hour
                folder.mkdir(parents=True, exist_ok=True)
                with atomic_file(kept) as file:
                    file.write_text(printed)
                raise ValueError(f"{error}; the compiled program is in {kept}") from error
    devices, compiled = math.prod(request.mesh.values()), math.prod(request.compiled.values())
    return Plan(
        request=request,
        batch_size=traced.config.batch_size * devices // compiled,
        accumulation=traced.config.accumulation if request.sampling_batch is None else 1,
        total_steps=_total_steps(request, traced),
        inputs=traced.inputs,
        gradients=traced.state["trained"],
        **facts | traced.state,
        flops=traced.flops * devices // compiled,
        model_flops=traced.model_flops * devices // compiled,
        attentions=attentions(traced.forward, target(request.accelerator)),
        compiler=compiler,
        compile_seconds=round(seconds, 1),
        out_of_memory=out_of_memory,
        key=key,
    )


def _printed(program: jax.stages.Compiled, dump: Path) -> str:
    """The text of a compiled program: what libtpu printed of it into `dump`, or what jax prints.

    Of libtpu's programs jax cannot print all: it refused asynchronous operations of a v6e's.
    """
    files = sorted(dump.glob("*.after_codegen.txt"), key=lambda file: file.stat().st_size)
    text = files[-1].read_text() if files else program.as_text()
    assert text is not None  # XLA's compilers for these chips give it
    return text


def _read(printed: str, memory: Any, request: Request, traced: Traced, resident: int) -> dict:
    """What a compiled program says of itself.

    Args:
        printed: Its text.
        memory: Its `memory_analysis()`.
        request: What is planned.
        traced: The program as it was traced.
        resident: Bytes of state and inputs on a device.
    """
    text = hlo.Program(printed)
    compiled_resident = memory.argument_size_in_bytes
    # Groups grow with the axes they lie along.
    size = lambda mesh, axes: math.prod(mesh[axis] for axis in axes)
    grown = lambda c: c.group * size(request.mesh, c.axes) // size(request.compiled, c.axes)
    if request.accelerator is None:
        # XLA:CPU's kernels are not the chip's: the least that any program moves.
        parts = traced.config.accumulation if request.sampling_batch is None else 1
        parameters = traced.state["trained"] + traced.state["frozen"]
        traffic = 2 * (resident + (parts - 1) * parameters + parts * memory.temp_size_in_bytes)
        peak = resident + memory.temp_size_in_bytes
    else:
        traffic = hlo.memory_traffic(text, target(request.accelerator).platform)
        peak = memory.peak_memory_in_bytes - compiled_resident + resident
    return {
        "temporary": memory.temp_size_in_bytes,
        "peak": peak,
        "traffic": traffic,
        "library_calls": hlo.library_calls(text),
        "collectives": tuple(
            replace(c, group=grown(c)) for c in hlo.collectives(text, request.compiled)
        ),
    }
