"""Tells the processor what compiled code will read soon: at millions of rows the time goes into waiting for memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_READ, _KEEP, _DATA = 0, 3, 1
"""Arguments of LLVM's ``prefetch``: for reading, into the nearest cache, data rather than code."""


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Return types and code of the call, as numba asks of an intrinsic."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type, index_type = signature.args
        view = context.make_array(array_type)(context, builder, arguments[0])
        position = context.cast(builder, arguments[1], index_type, types.intp)
        offset = builder.mul(position, cgutils.unpack_tuple(builder, view.strides, array_type.ndim)[0])
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.gep(builder.bitcast(view.data, pointer), [offset])
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [address, number(_READ), number(_KEEP), number(_DATA)])
        return context.get_dummy_value()

    return types.none(array, index), generate


prefetch = cast("Callable[[Any, Any], None]", intrinsic(_prefetch))
"""Fetch the line on which ``array[index]`` begins, from compiled code; harmless where nothing lies there, and nothing at all where processors cannot."""
