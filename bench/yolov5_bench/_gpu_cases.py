"""What `make gpu-check` measures, the most important first."""

from __future__ import annotations

from dataclasses import dataclass

BUNDLED_NETWORK = "bundled"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A server to measure.

    Attributes:
        network: the bundled one, a file of `--weights` by its name, or one with random weights.
        build: further arguments of `make model`.
        rect: the network is of open size, and the reference is that for `rect`.
        tf32: convolutions are computed in TF32, which a server does not do.
        client_side: a contender, whose clients do what the steps do.
        tensorrt: ONNX Runtime uses TensorRT, in FP16.
        killed: whether recovery is measured.
        full: measure with each number of callers, otherwise with those of `quick` alone.
        quick: numbers of callers of a quick check; none if only the answers matter.
    """

    name: str
    network: str = BUNDLED_NETWORK
    build: tuple[str, ...] = ()
    rect: bool = False
    tf32: bool = False
    client_side: bool = False
    tensorrt: bool = False
    killed: bool = False
    full: bool = True
    quick: tuple[int, ...] = (8, 32)

    @property
    def is_reference(self) -> bool:
        """Whether its answers must be those of the reference, up to rounding in FP32."""
        return self.network == BUNDLED_NETWORK and not self.tensorrt and "--half" not in self.build

    @property
    def seconds(self) -> float:
        """About how long it takes on a GPU: installing, starting, loading."""
        if self.tensorrt:
            return 150
        return 35 + 8 * len(self.quick) * (2 if self.full else 1)


_FP16 = ("--half",)
CASES = (
    Case(name="FP32", killed=True, quick=(1, 8, 32, 64)),
    Case(name="FP16", build=_FP16),
)


CLIENT_SIDE = Case(name="client-side", client_side=True, full=False)  # a contender's name
WITH_TF32 = Case(name="FP32 with TF32", tf32=True)  # the bare engine alone


def further_cases(networks: list[str]) -> list[Case]:
    """The other cases.

    Args:
        networks: names of those beside the bundled one.
    """
    rect = Case(name="FP32, rect", build=("--letterbox=rect",), rect=True, full=False, quick=())
    found = [Case(name=f"{network} FP32", network=network, full=False) for network in networks]
    found.append(rect)
    for network in networks:
        found.append(Case(name=f"{network} FP16", network=network, build=_FP16, full=False))
    return found


def tensorrt_cases(networks: list[str]) -> list[Case]:
    """Those for TensorRT, whose engines take minutes to build."""
    return [
        Case(
            name=f"{network} TensorRT FP16".removeprefix(f"{BUNDLED_NETWORK} "),
            network=network,
            tensorrt=True,
            full=False,
        )
        for network in (BUNDLED_NETWORK, *networks)
    ]
