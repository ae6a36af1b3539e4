"""The layouts that other runtimes load: the tensors of a module's weight, and their config.json.

=====================================  ==========================================================
layout                                 what it holds
=====================================  ==========================================================
``compressed-tensors``                 int2 to int8 (pack-quantized), fp8 (float-quantized), mxfp4,
                                       nvfp4
``compressed-tensors:int-quantized``   int8 that is multiplied with activations rounded to int8
``bitsandbytes``                       nf4 and fp4, their scales perhaps nested, and int8 rows
``gptq``, ``gptq_v2``                  2, 3, 4 and 8 bits in groups
``awq``                                4 bits in groups, with zero points
=====================================  ==========================================================

Nothing is quantized here, and nothing rounded: codes, scales and zero points are stored as the
layout has them where that is exact, and refused where not. Owners store scales in the dtype of the
model (float16 in GPTQ and AWQ), and the scales of most presets are float32: quantize with the
schemes of ``LAYOUTS[name].schemes``, whose scales have the right dtype.
"""

from quantarray.io.layouts.awq import Awq
from quantarray.io.layouts.bitsandbytes import Bitsandbytes
from quantarray.io.layouts.common import Layout
from quantarray.io.layouts.compressed import CompressedTensors
from quantarray.io.layouts.compressed_formats import INT_QUANTIZED
from quantarray.io.layouts.gptq import Gptq

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        CompressedTensors(),
        CompressedTensors("compressed-tensors:int-quantized", (INT_QUANTIZED,)),
        Bitsandbytes(),
        Gptq("gptq", "gptq_v1"),
        Gptq("gptq_v2", "gptq_v2"),
        Awq(),
    )
}
"""By name; where several have one ``quant_method``, the first reads what does not say which."""

__all__ = ["LAYOUTS", "Layout"]
