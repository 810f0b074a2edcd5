"""The pipeline: the compiler's table of contents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..cost.alternatives import Ask
from .attention import FormAttention
from .attention_refine import RefineAttention
from .canonical import Canonicalise
from .cleanup import Cse, Dce, Fold
from .concats import ShareConcats
from .fuse.chains import FuseChains
from .fuse.epilogue import FuseEpilogues
from .fuse.pairs import FusePairs
from .fuse.prologue import FusePrologues
from .fuse.regions import FuseRegions
from .fuse.rows import FuseRows
from .fuse.scales import FuseScales
from .fuse.sums import FuseSums
from .fuse.views import PrepareFusion
from .legalise import Legalise, everything_core
from .manager import Pass
from .pads import FoldPads
from .quantized import FormQuantized
from .reductions import Reductions
from .roll import RollLoops
from .rotary import RotateHalf
from .softmax import RaiseSoftmax
from .weights import FoldAffine, MergeMatmuls, UnflattenMatmuls
from .winograd import FormWinograd


@dataclass(frozen=True)
class Options:
    """Options of the default pipeline."""

    native: Callable[[str], bool] = everything_core  # ops that the backend runs itself; the others are decomposed

    fold_limit: int = 1 << 28  # largest result, in bytes, that constant folding may create
    kernels: bool = True  # form fused kernels; not for a target that takes single ops, such as ONNX
    lookups: bool = True  # tables are read within fused regions; not where they may stream from the artifact
    sizes: bool = True  # what depends on sizes is chosen when they are known; not where a budget counts both ways
    ask: Ask | None = None  # chooses among alternatives of a rewrite; without it the passes' rules do


def default(options: Options | None = None) -> tuple[Pass, ...]:
    """The passes that every graph goes through, in order."""
    o = options or Options()
    return (
        Legalise(o.native),
        *((FormQuantized(),) if o.native("qmatmul") else ()),
        Canonicalise(),
        Fold(o.fold_limit),
        Canonicalise(),  # now that conditions and masks are numbers
        Cse(),
        RollLoops(),
        Reductions(),
        RaiseSoftmax(),
        *((FormAttention(), RefineAttention(), Canonicalise(), Cse(), Dce()) if o.native("attention") else ()),
        FoldPads(),
        FoldAffine(),
        UnflattenMatmuls(),
        MergeMatmuls(),
        Fold(o.fold_limit),
        Canonicalise(),
        Cse(),
        *(
            (
                ShareConcats(),
                RotateHalf(),
                FuseEpilogues(),
                PrepareFusion(),
                Canonicalise(),
                Cse(),
                FuseRegions(lookups=o.lookups),
            )
            if o.kernels
            else ()
        ),
        *((FusePrologues(),) if o.kernels and o.native("attention_fused") else ()),
        *((FuseScales(),) if o.kernels and o.native("conv_scaled") else ()),
        *((FuseChains(o.ask),) if o.kernels and o.native("conv_chain") else ()),
        *((FusePairs(),) if o.kernels and o.native("conv_pair") else ()),
        *((FuseSums(),) if o.kernels and o.native("conv_chain") and o.native("conv_pair") else ()),
        *((FormWinograd(o.ask),) if o.kernels and o.native("conv_winograd") else ()),
        *((FuseRows(o.ask, o.sizes),) if o.kernels and o.native("row_chain") else ()),
        Dce(),
    )
