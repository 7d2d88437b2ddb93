"""Lists the kernels and collectives of a program that XLA has compiled for a GPU.

Each kernel has its operations, its bytes and a modelled time. Each collective has its bytes and its modelled time.

Every instruction of the entry computation that is neither a parameter nor a view is one kernel. Its bytes are the sizes
of its operands and results. Of an operand that a fusion only slices or gathers from, the slices count. Its operations
are two for each multiply-add of its matrix products. The model: a kernel takes as long as its operations or its bytes
need, whichever is longer; kernels do not overlap, and nothing lies between them. A collective runs beside the kernels
between its start and its end in the program's order; collectives follow one another.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PARTS = (
    "dense layers",
    "attention: products",
    "attention: softmax, layout",
    "GELU",
    "norms, residual sums",
    "biases",
    "casts of weights",
    "rest",
)
_FOLDER = Path(__file__).parent / "gpus"
_VIEWS = ("parameter", "bitcast", "tuple", "get-tuple-element", "constant", "after-all", "partition-id")
_CALLS = ("call", "while", "conditional", "async-start")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_SLICES = ("slice", "dynamic-slice", "gather")
_TYPE = r"\((?:[^()]|\([^()]*\))*\)|\S+"
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?([\w.\-]+) = ({_TYPE}) ([\w\-]+)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)|(?:called|branch)_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Card:
    """A GPU, as its vendor describes it, and how much of that large kernels reach.

    Attributes:
      name: of the file `benchmarks/gpus/<name>.txtpb`, from which XLA compiles.
      peak: operations a second in bfloat16, dense. Products of float32 operands have half of them (TF32).
      bandwidth: bytes a second of its memory.
      link: bytes a second that it sends to the other cards of its host (NVLink, one direction).
      products: share of the peak that a large product reaches; an assumption.
      copies: share of the bandwidth that a large copy reaches; an assumption.
      latency: seconds that a collective takes at least; an assumption.
    """

    name: str
    peak: float
    bandwidth: float
    link: float = 450e9
    products: float = 0.8
    copies: float = 0.9
    latency: float = 30e-6

    @property
    def capability(self) -> tuple[int, int]:
        """Returns CUDA's compute capability of the description."""
        major, minor = re.search(r"cuda_compute_capability \{ major: (\d+) minor: (\d+)", self.description).groups()
        return int(major), int(minor)

    @property
    def description(self) -> str:
        """Returns the description of a GPU from which XLA compiles.

        It is a text of `stream_executor.GpuTargetConfigProto`.
        """
        return (_FOLDER / f"{self.name}.txtpb").read_text(encoding="utf-8")


# SXM forms; the A100 with 80 GB.
CARDS = {
    card.name: card
    for card in (
        Card("h200", 989e12, 4.8e12),
        Card("h100", 989e12, 3.35e12),
        Card("a100", 312e12, 2.039e12, link=300e9),
    )
}


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
      name: of the instruction.
      source: path of what it computes, `op_name`.
      part: row of the table, one of `PARTS`.
      bytes: read and written.
      flops: operations of products whose operands have 16 bits or fewer.
      wide_flops: operations of products of two float32 operands.
    """

    name: str
    source: str
    part: str
    bytes: int
    flops: float = 0.0
    wide_flops: float = 0.0

    def seconds(self, card: Card) -> float:
        """Returns the modelled time."""
        work = (self.flops + 2 * self.wide_flops) / (card.products * card.peak)
        return max(work, self.bytes / (card.copies * card.bandwidth))


@dataclass(frozen=True)
class Collective:
    """One exchange between the cards of a host.

    Attributes:
      name: of the instruction that starts it.
      kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
      bytes: of the complete arrays: those that are gathered, reduced or exchanged.
      devices: number of cards that take part.
    """

    name: str
    kind: str
    bytes: int
    devices: int

    def seconds(self, card: Card) -> float:
        """Returns the modelled time, that of a ring.

        A card sends (n - 1) / n of the arrays, or twice as much in an "all-reduce".
        """
        passes = 2 if self.kind == "all-reduce" else 1
        return card.latency + passes * self.bytes * (self.devices - 1) / self.devices / card.link


@dataclass(frozen=True)
class End:
    """The point in a program at which the results of a collective are needed.

    Attributes:
      name: of the collective.
    """

    name: str


@dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def called(self) -> list[str]:
        names = [single or several for single, several in _CALLED.findall(self.attributes)]
        return [name.strip(" %") for text in names for name in text.split(",")]

    @property
    def target(self) -> str:
        """Returns what a custom call calls."""
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match.group(1) if match else ""

    @property
    def source(self) -> str:
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match.group(1) if match else ""


def kernels(program: str) -> list[Kernel]:
    """Returns the kernels of a compiled program's text in their order.

    Those of a loop occur once for each of its repetitions.
    """
    return [event for event in schedule(program) if isinstance(event, Kernel)]


def schedule(program: str, devices: int = 1) -> list[Kernel | Collective | End]:
    """Returns the kernels of a compiled program, and starts and ends of collectives.

    The list has the order of the program.

    Args:
      program: text of the compiled program.
      devices: number of cards for which it is compiled. A sum over some of them is taken for one over all.
    """
    computations, entry = _parse(program)
    return list(_events(computations, entry, devices))


def waiting_seconds(events: list[Kernel | Collective | End], card: Card) -> float:
    """Returns the modelled time in which a card only waits for collectives.

    The time is in seconds, of one run of a program.

    Args:
      events: result of `schedule`.
      card: that runs the program.
    """
    now, link_is_free, waited, ends = 0.0, 0.0, 0.0, {}
    for event in events:
        if isinstance(event, Kernel):
            now += event.seconds(card)
        elif isinstance(event, Collective):
            ends[event.name] = link_is_free = max(now, link_is_free) + event.seconds(card)
        else:
            waited += max(0.0, ends[event.name] - now)
            now = max(now, ends[event.name])
    return waited


def _parse(program: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """Returns computation -> name -> instruction, and the entry computation's name."""
    computations, entry, current = {}, "", {}
    for line in program.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations[head.group(2)] = {}
            entry = head.group(2) if head.group(1) else entry
        elif match := _INSTRUCTION.match(line):
            name, kind, opcode, text = match.groups()
            end = _closing(text)
            operands = tuple(re.findall(r"%([\w.\-]+)", text[:end])) if opcode != "constant" else ()
            attributes = text if opcode == "parameter" else text[end:]
            current[name] = _Instruction(name, kind, opcode, operands, attributes)
    return computations, entry


def _closing(text: str) -> int:
    """Returns the position of the parenthesis that closes one before the text."""
    depth = 1
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return position
    return len(text)


def _events(computations, name, devices) -> Iterator[Kernel | Collective | End]:
    instructions = computations[name]
    for instruction in instructions.values():
        if instruction.opcode.removesuffix("-start").removesuffix("-done") in _COLLECTIVES:
            yield from _exchange(instructions, instruction, devices)
        elif instruction.opcode in _CALLS:
            repeats = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.attributes)
            inner = [event for called in instruction.called for event in _events(computations, called, devices)]
            yield from inner * (int(repeats.group(1)) if repeats and instruction.opcode == "while" else 1)
        elif instruction.opcode not in _VIEWS:
            flops, wide = _products(computations, instructions, instruction)
            bytes_read = sum(
                _read(computations, instructions, instruction, index) for index in range(len(instruction.operands))
            )
            part = _part(instruction.source, bool(flops or wide), _is_cast(instructions, instruction))
            yield Kernel(instruction.name, instruction.source, part, bytes_read + _size(instruction.type), flops, wide)


def _exchange(instructions, instruction, devices) -> Iterator[Collective | End]:
    """Yields the start of a collective, its end, or both.

    A collective that nothing runs beside has both.
    """
    if instruction.opcode.endswith("-done"):
        yield End(instruction.operands[0])
        return
    kind = instruction.opcode.removesuffix("-start")
    sent = sum(_size(instructions[name].type) for name in instruction.operands)
    received = _size(instruction.type)
    if kind != instruction.opcode and kind != "all-reduce":
        received -= sent  # the type of such a start holds its operands, too
    size = max(sent, received)
    taking_part = devices if kind in ("all-reduce", "all-to-all", "collective-permute") else size // min(sent, received)
    yield Collective(instruction.name, kind, size, taking_part)
    if kind == instruction.opcode:
        yield End(instruction.name)


def _read(computations, instructions, instruction, index) -> int:
    """Returns the bytes that an instruction reads of an operand."""
    size = _size(instructions[instruction.operands[index]].type)
    if instruction.opcode != "fusion":
        return min(size, _size(instruction.type)) if instruction.opcode in _SLICES else size
    body = computations[instruction.called[0]]
    parameter = next(x.name for x in body.values() if x.opcode == "parameter" and x.attributes.startswith(f"{index})"))
    users = [x for x in body.values() if parameter in x.operands]
    if users and all(user.opcode in _SLICES and user.operands[0] == parameter for user in users):
        return min(size, sum(_size(user.type) for user in users))
    return size


def _products(computations, instructions, instruction) -> tuple[float, float]:
    """Returns the operations of an instruction's products.

    The first number is of products of 16-bit operands, the second of two float32 operands.
    """
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes).group(1)
        return _product(instructions, instruction, [int(axis) for axis in contracted.split(",") if axis])
    if instruction.opcode == "custom-call" and instruction.target.startswith("__cublas"):
        numbers = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', instruction.attributes).group(1)
        return _product(instructions, instruction, [int(axis) for axis in json.loads(numbers)])
    if instruction.opcode == "custom-call" and instruction.target.startswith("__cudnn$fmha"):
        return _fused_attention(instructions, instruction), 0.0
    if instruction.opcode == "fusion":
        called = [(computations[name], inner) for name in instruction.called for inner in computations[name].values()]
        inner_products = [_products(computations, body, inner) for body, inner in called]
        return sum(flops for flops, _ in inner_products), sum(wide for _, wide in inner_products)
    return 0.0, 0.0


def _product(instructions, instruction, contracted):
    left, right = (_arrays(instructions[name].type)[0] for name in instruction.operands[:2])
    terms = math.prod(left[1][axis] for axis in contracted)
    flops = 2.0 * terms * math.prod(_arrays(instruction.type)[0][1])
    return (0.0, flops) if left[0] == right[0] == "f32" else (flops, 0.0)


def _fused_attention(instructions, instruction):
    """Returns the operations of cuDNN's attention.

    It has two products forward. Backward it has five, which compute the scores again.
    """
    batch, heads, queries, width = _arrays(instruction.type)[0][1]
    keys = math.prod(_arrays(instructions[instruction.operands[1]].type)[0][1]) // (batch * heads * width)
    return (10.0 if "Backward" in instruction.target else 4.0) * batch * heads * queries * keys * width


def _arrays(kind: str) -> list[tuple[str, tuple[int, ...]]]:
    """Returns (element type, shape) of the arrays of a type.

    >>> _arrays("(bf16[8,6]{1,0}, s32[])")
    [('bf16', (8, 6)), ('s32', ())]
    """
    return [(name, tuple(map(int, filter(None, shape.split(","))))) for name, _, shape in _ARRAY.findall(kind)]


def _size(kind: str) -> int:
    """Returns the bytes of a type."""
    arrays = _ARRAY.findall(kind)
    return sum(
        max(1, int(bits or 8) // 8) * math.prod(map(int, filter(None, shape.split(",")))) for _, bits, shape in arrays
    )


def _is_cast(instructions, instruction) -> bool:
    """Returns whether an instruction only changes the type of its one operand."""
    if len(instruction.operands) != 1 or instruction.type.startswith("("):
        return False
    (old_type, old_shape), (new_type, new_shape) = (
        _arrays(instructions[instruction.operands[0]].type)[0],
        _arrays(instruction.type)[0],
    )
    return old_type != new_type and math.prod(old_shape) == math.prod(new_shape)


def _part(source: str, is_product: bool, is_cast: bool = False) -> str:
    """Returns the row of the table for the path of what a kernel computes.

    >>> _part("jit(step)/jvp(ViT)/block_0/mlp/fc1/dot_general", True), _part("jit(step)/ViT/block_0/attn/exp", False)
    ('dense layers', 'attention: softmax, layout')
    """
    names = re.sub(r"(jit|jvp|transpose|vmap|checkpoint|remat)\(|\)", "", source).split("/")
    is_dense = any(name in ("qkv", "proj", "fc1", "fc2", "patch_embed", "head") for name in names)
    if is_product:
        is_attention = "attn" in names and not is_dense
        is_network = any(name.startswith(("ViT", "DeiT", "block_")) for name in names)
        return PARTS[1] if is_attention else PARTS[0] if is_dense or is_network else PARTS[-1]
    if is_dense and names[-1] == "convert_element_type":  # XLA casts the output of a norm as it writes it
        return "casts of weights" if is_cast else "norms, residual sums"
    if is_dense:
        return "biases"
    if "attn" in names:
        return PARTS[2]
    if "mlp" in names:
        return "GELU"
    in_block = any(name.startswith("block_") for name in names)
    return "norms, residual sums" if in_block or any(name.startswith("norm") for name in names) else "rest"
