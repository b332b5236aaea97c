"""What a weight has become: each form knows its exact bytes, its dense value, its product with an input, and how it is saved."""

from modicum.forms.activated import Activated
from modicum.forms.affine import Affine
from modicum.forms.blend import Blend
from modicum.forms.blockwise import Blockwise
from modicum.forms.chained import Chained
from modicum.forms.codebook import Codebook
from modicum.forms.coded import Coded
from modicum.forms.cut import Cut
from modicum.forms.dense import Dense
from modicum.forms.diagonal import Diagonal
from modicum.forms.float4 import Float4
from modicum.forms.float6 import Float6
from modicum.forms.float8 import Float8
from modicum.forms.form import Form, restore
from modicum.forms.ggml import Ggml
from modicum.forms.hadamard import Hadamard
from modicum.forms.half import Half
from modicum.forms.householder import Householder
from modicum.forms.integer import Integer
from modicum.forms.kronecker import Kronecker
from modicum.forms.leaves import Base, Seeded, Shared
from modicum.forms.low_rank import LowRank
from modicum.forms.masked import Masked
from modicum.forms.minifloat import Minifloat
from modicum.forms.nested import Nested
from modicum.forms.normalized import Normalized
from modicum.forms.pooled import Pooled
from modicum.forms.product import Product
from modicum.forms.projected import Projected
from modicum.forms.reflected import Reflected
from modicum.forms.rotated import Rotated
from modicum.forms.sparse import Sparse
from modicum.forms.sum import Sum
from modicum.forms.swapped import Swapped
from modicum.forms.switched import Switched
from modicum.forms.tucker import Tucker
from modicum.forms.within import Within

__all__ = [
    "Activated",
    "Affine",
    "Base",
    "Blend",
    "Blockwise",
    "Chained",
    "Codebook",
    "Coded",
    "Cut",
    "Dense",
    "Diagonal",
    "Float4",
    "Float6",
    "Float8",
    "Form",
    "Ggml",
    "Hadamard",
    "Half",
    "Householder",
    "Integer",
    "Kronecker",
    "LowRank",
    "Masked",
    "Minifloat",
    "Nested",
    "Normalized",
    "Pooled",
    "Product",
    "Projected",
    "Reflected",
    "Rotated",
    "Seeded",
    "Shared",
    "Sparse",
    "Sum",
    "Swapped",
    "Switched",
    "Tucker",
    "Within",
    "restore",
]
