"""Prints the polynomials of vector_math.hpp, which minimise the maximum error (Remez exchange).

    python tools/minimax.py

Remez (1934): on n + 1 points the polynomial whose weighted error has equal size and alternating
sign solves a linear system; exchange the points for the extrema of that error and solve again. All
in decimal arithmetic of 60 digits, with series and continued fractions for the functions.
"""

from collections.abc import Callable
from decimal import Decimal, getcontext
from itertools import pairwise

getcontext().prec = 60
ONE = Decimal(1)
LN2 = Decimal(2).ln()
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
Function = Callable[[Decimal], Decimal]


def solve(rows: list[list[Decimal]]) -> list[Decimal]:
    """Gaussian elimination with row pivots; each row ends with its right-hand side."""
    n = len(rows)
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(n):
            if r != i:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [x - factor * y for x, y in zip(rows[r], rows[i], strict=True)]
    return [rows[i][n] / rows[i][i] for i in range(n)]


def cosine(k: int, n: int) -> Decimal:
    """The cosine of pi k / n, by its series."""
    x, term, total = (PI * k / n) ** 2, ONE, ONE
    for i in range(1, 40):
        term *= -x / (2 * i * (2 * i - 1))
        total += term
    return total


def horner(coefficients: list[Decimal], x: Decimal) -> Decimal:
    """The polynomial with the given coefficients, constant first."""
    total = Decimal(0)
    for c in reversed(coefficients):
        total = total * x + c
    return total


def minimax(
    f: Function, weight: Function, low: Decimal, high: Decimal, n: int
) -> tuple[list[Decimal], Decimal]:
    """The n coefficients that minimise max |weight (p - f)| on [low, high], and that maximum."""
    samples = 40 * n
    floor = Decimal("0.01") * max(weight(low), weight(high))  # a weight may vanish inside
    grid = [(low + high) / 2 - (high - low) / 2 * cosine(k, samples) for k in range(samples + 1)]
    values = [(x, f(x), max(weight(x), floor)) for x in grid]
    chosen = [values[round(k * samples / n)] for k in range(n + 1)]
    for _ in range(30):
        rows = [
            [ONE, *(x**j for j in range(1, n)), (-ONE) ** i / w, y]
            for i, (x, y, w) in enumerate(chosen)
        ]
        *coefficients, level = solve(rows)
        errors = [w * (horner(coefficients, x) - y) for x, y, w in values]
        ends = [0] + [i + 1 for i, (a, b) in enumerate(pairwise(errors)) if (a > 0) != (b > 0)]
        runs = [range(a, b) for a, b in pairwise([*ends, len(errors)])]
        extrema = [max(run, key=lambda i: abs(errors[i])) for run in runs]
        while len(extrema) > n + 1:  # the exchange keeps the larger end
            del extrema[0 if abs(errors[extrema[0]]) < abs(errors[extrema[-1]]) else -1]
        worst = max(abs(e) for e in errors)
        if worst <= abs(level) * Decimal("1.0001") or len(extrema) < n + 1:
            break
        chosen = [values[i] for i in extrema]
    return coefficients, worst


def series(x: Decimal, first: int, step: int) -> Decimal:
    """The sum of x^k / (first + k step)! over k."""
    total, term, k = Decimal(0), ONE, 0
    for i in range(2, first + 1):
        term /= i
    while abs(term) > Decimal("1e-70"):
        total += term
        for i in range(first + k * step + 1, first + (k + 1) * step + 1):
            term /= i
        term *= x
        k += 1
    return total


def tanh_core(u: Decimal) -> Decimal:
    """(tanh(r) - r) / r^3 with u = r^2: sinh - r cosh over r^3 cosh, term by term."""
    sinh3, cosh2 = series(u, 3, 2), series(u, 2, 2)  # (sinh r - r) / r^3, (cosh r - 1) / r^2
    return (sinh3 - cosh2) / (1 + u * cosh2)


def log_core(u: Decimal) -> Decimal:
    """(log((1 + s) / (1 - s)) - 2 s) / s^3 with u = s^2."""
    return horner([2 / Decimal(2 * k + 3) for k in range(60)], u)


def central(u: Decimal) -> Decimal:
    """(Phi(x) - 1/2) / x with u = x^2: the density times a series of positive terms."""
    total, term, k = Decimal(0), ONE, 1
    while term > Decimal("1e-70"):
        total += term
        k += 2
        term *= u / k
    return (-u / 2).exp() / (2 * PI).sqrt() * total


def log_tail(t: Decimal) -> Decimal:
    """The logarithm of 2 Phi(-z) exp(z^2 / 2) (z + 1) with t = (z - 3) / (z + 3)."""
    z = 3 * (1 + t) / (1 - t)
    if z < 6:
        mills = (Decimal("0.5") - z * central(z * z)) * (z * z / 2).exp()
    else:
        fraction = z
        for k in range(700, 0, -1):  # 1 / (z + 1 / (z + 2 / (z + 3 / ...)))
            fraction = z + k / fraction
        mills = 1 / (fraction * (2 * PI).sqrt())
    return (2 * mills * (z + 1)).ln()


def show(name: str, result: tuple[list[Decimal], Decimal]) -> None:
    """Prints the coefficients as the nearest floats and doubles."""
    coefficients, error = result
    print(f"{name}: largest error {error:.2e} = 2^{float(error.ln() / LN2):.1f}")
    print("  " + ", ".join(f"{float(c)!r}" for c in coefficients))


def main() -> None:
    """All of them, in the order of vector_math.hpp."""
    half, root = LN2 / 2, Decimal(2).sqrt()
    slack = Decimal("1.001")  # the rounded quotient may leave r just outside
    for name, n in [("float", 5), ("double", 10)]:
        exp = minimax(
            lambda r: series(r, 2, 1),
            lambda r: abs(r) / series(r, 1, 1),
            -half * slack,
            half * slack,
            n,
        )
        show(f"(exp(r) - 1 - r) / r^2, {name}", exp)
    for name, n in [("float", 3), ("double", 7)]:
        tanh = minimax(
            tanh_core,
            lambda u: u / (1 + u * tanh_core(u)),
            Decimal(0),
            (Decimal("0.375") * LN2 * slack) ** 2,
            n,
        )
        show(f"(tanh(r) - r) / r^3 in r^2, {name}", tanh)
    for name, n in [("float", 3), ("double", 7)]:
        log = minimax(
            log_core,
            lambda u: u / (2 + u * log_core(u)),
            Decimal(0),
            ((root - 1) / (root + 1)) ** 2 * slack,
            n,
        )
        show(f"(log((1 + s) / (1 - s)) - 2 s) / s^3 in s^2, {name}", log)
    middle = Decimal("0.65")
    for name, n in [("float", 5), ("double", 9)]:
        show(
            f"(Phi(x) - 1/2) / x in x^2, {name}",
            minimax(central, lambda u: ONE, Decimal(0), middle**2, n),
        )
    for name, n, last in [("float", 9, "14.5"), ("double", 23, "38.7")]:
        z = Decimal(last)
        ends = (middle - 3) / (middle + 3), (z - 3) / (z + 3)
        show(
            f"log(2 Phi(-z) exp(z^2 / 2) (z + 1)) in (z - 3) / (z + 3), {name}",
            minimax(log_tail, lambda t: ONE, *ends, n),
        )


if __name__ == "__main__":
    main()
