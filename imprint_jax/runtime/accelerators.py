"""What accelerators can do, and what XLA has to be told of them, by their vendors' data sheets.

Nothing here was measured.
"""

from dataclasses import dataclass

# The share of peak FLOP/s that matrix products and convolutions are assumed to reach. Ours.
UTILISATION = 0.4

# GB and GiB as the data sheets have them: a "GB" taken as 10^9 bytes leaves some memory unplanned.
KIB, MIB, GIB, GB, TB = 2**10, 2**20, 2**30, 1e9, 1e12


@dataclass(frozen=True)
class GPU:
    """What XLA:GPU has to know of an NVIDIA GPU beyond its memory.

    Attributes:
        compute_capability: "8.0" and so on.
        multiprocessors: Streaming multiprocessors (SMs).
        l2_cache: Bytes.
        clock: Boost clock, GHz.
    """

    compute_capability: str
    multiprocessors: int
    l2_cache: int
    clock: float


@dataclass(frozen=True)
class MultiprocessorLimits:
    """What a multiprocessor has, by compute capability.

    Attributes:
        threads: Resident at most.
        shared_memory: Bytes.
        shared_memory_per_block: Bytes that one block can have.
        float32_units: Multiply-adds in float32 a cycle.
    """

    threads: int
    shared_memory: int
    shared_memory_per_block: int
    float32_units: int


# CUDA C++ Programming Guide 13.0, tables "Technical Specifications per Compute Capability" and
# "Throughput of Native Arithmetic Instructions".
MULTIPROCESSORS = {
    "8.0": MultiprocessorLimits(2048, 164 * KIB, 163 * KIB, 64),
    "8.6": MultiprocessorLimits(1536, 100 * KIB, 99 * KIB, 128),
    "8.9": MultiprocessorLimits(1536, 100 * KIB, 99 * KIB, 128),
    "9.0": MultiprocessorLimits(2048, 228 * KIB, 227 * KIB, 128),
}


@dataclass(frozen=True)
class TPU:
    """What libtpu has to know of a TPU.

    Attributes:
        generation: As topologies are named, "v5e".
        slices: Shapes of slices by their number of chips, as Cloud TPU's documentation has them.
        megacore: A chip's two cores are one device only if libtpu is told so.
    """

    generation: str
    slices: dict[int, str]
    megacore: bool = False


_PLANE = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4"}
_CUBE = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4"}


@dataclass(frozen=True)
class Accelerator:
    """One device's peaks. Bandwidths of links are one way; data sheets of NVLink and PCIe add both.

    `link` joins the `node` devices of one machine, or of a TPU slice; `network` joins more of them.
    """

    device_kind: str  # what JAX calls it
    flops: float  # dense bfloat16 FLOP/s, accumulated in float32
    memory: float  # bytes
    bandwidth: float  # bytes/s of its memory
    link: float  # bytes/s to its neighbours, one way
    network: float  # bytes/s a device beyond them, one way
    node: int  # devices that `link` joins
    chip: GPU | TPU  # for the compiler


ACCELERATORS = {
    # NVIDIA A100 Tensor Core GPU data sheet (SXM): 312 TFLOPS, 1,555 and 2,039 GB/s, NVLink 600
    # GB/s both ways. DGX A100 data sheet: 8 GPUs, one 200 Gb/s network adapter a GPU. NVIDIA A100
    # architecture white paper: 108 multiprocessors, 40 MB L2, 1,410 MHz.
    "a100-40g": Accelerator(
        "NVIDIA A100-SXM4-40GB",
        312e12,
        *(40 * GB, 1.555 * TB, 300 * GB, 25 * GB, 8),
        GPU("8.0", 108, 40 * MIB, 1.41),
    ),
    "a100-80g": Accelerator(
        "NVIDIA A100-SXM4-80GB",
        312e12,
        *(80 * GB, 2.039 * TB, 300 * GB, 25 * GB, 8),
        GPU("8.0", 108, 40 * MIB, 1.41),
    ),
    # NVIDIA H100 data sheet (SXM): 1,979 TFLOPS with sparsity, so 989 dense; 3.35 TB/s, NVLink 900
    # GB/s both ways. DGX H100 data sheet: 8 GPUs, one 400 Gb/s adapter a GPU. NVIDIA H100
    # architecture white paper: 132 multiprocessors, 50 MB L2; XLA's own description: 1.98 GHz.
    "h100": Accelerator(
        "NVIDIA H100 80GB HBM3",
        989e12,
        *(80 * GB, 3.35 * TB, 450 * GB, 50 * GB, 8),
        GPU("9.0", 132, 50 * MIB, 1.98),
    ),
    # NVIDIA H200 data sheet (SXM): as H100, with 141 GB at 4.8 TB/s.
    "h200": Accelerator(
        "NVIDIA H200",
        989e12,
        *(141 * GB, 4.8 * TB, 450 * GB, 50 * GB, 8),
        GPU("9.0", 132, 50 * MIB, 1.98),
    ),
    # Cloud TPU documentation, "TPU v4": 275 TFLOPs, 32 GiB, 1,200 GBps, 2,400 Gbps of links. The
    # data centre's network is given for v5p only (50 Gbps a chip) and taken for all TPUs. A slice
    # counts as one node: 4,096 chips, and below 256, 8,960 and 256.
    "tpu-v4": Accelerator(
        "TPU v4",
        275e12,
        *(32 * GIB, 1.2 * TB, 300 * GB, 6.25 * GB, 4096),
        TPU("v4", _CUBE, megacore=True),
    ),
    # Cloud TPU documentation, "TPU v5e": 197 TFLOPs, 16 GB, 819 GBps, 1,600 Gbps.
    "tpu-v5e": Accelerator(
        "TPU v5 lite",
        197e12,
        *(16 * GB, 819 * GB, 200 * GB, 6.25 * GB, 256),
        TPU("v5e", _PLANE),
    ),
    # Cloud TPU documentation, "TPU v5p": 459 TFLOPs, 95 GiB, 2,765 GBps, 1,200 GBps both ways.
    # libtpu calls it "TPU v5".
    "tpu-v5p": Accelerator(
        "TPU v5",
        459e12,
        *(95 * GIB, 2.765 * TB, 600 * GB, 6.25 * GB, 8960),
        TPU("v5p", _CUBE),
    ),
    # Cloud TPU documentation, "TPU v6e": 918 TFLOPs, 32 GB, 1,600 GBps, 800 GBps both ways.
    "tpu-v6e": Accelerator(
        "TPU v6 lite",
        918e12,
        *(32 * GB, 1.6 * TB, 400 * GB, 6.25 * GB, 256),
        TPU("v6e", _PLANE),
    ),
    # 24 GB cards, joined by PCIe 4.0 x16 (64 GB/s both ways); no network assumed beyond.
    # NVIDIA Ada GPU architecture white paper, appendix: RTX 4090 165.2 TFLOPS, 1,008 GB/s, 128
    # multiprocessors, 72 MB L2, 2,520 MHz.
    "rtx4090": Accelerator(
        "NVIDIA GeForce RTX 4090",
        165.2e12,
        *(24 * GB, 1.008 * TB, 32 * GB, 1.25 * GB, 8),
        GPU("8.9", 128, 72 * MIB, 2.52),
    ),
    # NVIDIA A10 data sheet: 125 TFLOPS (250 with sparsity), 600 GB/s. NVIDIA Ampere GA102 white
    # paper: 72 multiprocessors of this chip are on, 6 MB L2, 1,695 MHz.
    "a10": Accelerator(
        "NVIDIA A10",
        125e12,
        *(24 * GB, 600 * GB, 32 * GB, 1.25 * GB, 8),
        GPU("8.6", 72, 6 * MIB, 1.695),
    ),
    # NVIDIA L4 data sheet: 242 TFLOPS with sparsity, so 121 dense; 300 GB/s. NVIDIA Ada white
    # paper: 58 multiprocessors (7,424 CUDA cores), 48 MB L2, 2,040 MHz.
    "l4": Accelerator(
        "NVIDIA L4",
        121e12,
        *(24 * GB, 300 * GB, 32 * GB, 1.25 * GB, 8),
        GPU("8.9", 58, 48 * MIB, 2.04),
    ),
}

# Dense bfloat16 FLOP/s of one device by what JAX calls it.
PEAK_FLOPS = {a.device_kind: a.flops for a in ACCELERATORS.values()}
