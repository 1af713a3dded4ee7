"""The pieces of a solve, each to be called alone: operators, line search, and what they report."""

from natgrad._core import CgReport as CgReport
from natgrad._core import CgResult as CgResult
from natgrad._core import CgStatus as CgStatus
from natgrad._core import DiagonalPreconditioner as DiagonalPreconditioner
from natgrad._core import InnerSolver as InnerSolver
from natgrad._core import KroneckerFactors as KroneckerFactors
from natgrad._core import LineSearchResult as LineSearchResult
from natgrad._core import LineSearchStatus as LineSearchStatus
from natgrad._core import NystromPreconditioner as NystromPreconditioner
from natgrad._core import Preconditioner as Preconditioner
from natgrad._core import backtracking_line_search as backtracking_line_search
from natgrad._core import conjugate_gradient as conjugate_gradient
