"""Products with weights: few lines through C, many through torch, floats and 8-bit integers, against float64."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from engine import linear
from engine.linear import Int8Linear, Linear
from engine.native.library import load

SHAPES = [(1, 8), (11, 37), (12, 64), (37, 60), (100, 1030), (300, 2048)]
FEW = range(1, 14)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers in every run: what is compared is rounding."""
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def stopped_threads() -> Iterator[None]:
    """Ends what threads the library started."""
    yield
    if (native := load()) is not None:
        native.stop_threads()


def an_error(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> float:
    """The largest error, relative to the product of the two vectors' lengths."""
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    scale = x.double().norm(dim=1, keepdim=True) * weight.double().norm(dim=1) + 1
    return float(((found - exact).abs() / scale).max())


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_float64_for_few_lines_and_many(shape: tuple[int, int], has_bias: bool) -> None:
    weight, bias = torch.randn(shape), torch.randn(shape[0]) if has_bias else None
    floats, integers = Linear(weight, bias), Int8Linear.quantize(weight, bias)
    x = torch.randn(200, shape[1])
    for num_lines in (*FEW, 32, 63, 64, 65, 96, 97, 200):
        found = floats(x[:num_lines])
        assert found.shape == (num_lines, shape[0])
        assert an_error(found, x[:num_lines], weight, bias) < 1e-6
        assert an_error(integers(x[:num_lines]), x[:num_lines], integers.dequantized(), bias) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_a_line_is_the_same_whatever_is_beside_it_and_on_any_number_of_threads(shape: tuple[int, int]) -> None:
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    x = torch.randn(max(FEW), shape[1])
    for make in (Linear, Int8Linear.quantize):
        one, three = make(weight, bias), make(weight, bias, num_threads=3)
        together = one(x)
        for num_lines in FEW:
            assert torch.equal(one(x[:num_lines]), together[:num_lines])
            assert torch.equal(three(x[-num_lines:]), together[-num_lines:])


def test_nan_goes_through_its_own_line_only() -> None:
    x = torch.randn(6, 100)
    x[2, 3], x[4, 99] = torch.nan, torch.inf
    for product in (Linear(torch.randn(50, 100)), Int8Linear.quantize(torch.randn(50, 100))):
        assert product(x).isfinite().all(dim=1).tolist() == [True, True, False, True, False, True]


def test_eight_bits_keep_each_row_within_half_a_step() -> None:
    weight = torch.randn(30, 64) * torch.logspace(-6, 3, 30)[:, None]
    weight[4] = 0
    quantized = Int8Linear.quantize(weight)
    assert ((quantized.dequantized() - weight).abs() <= 0.5001 * quantized.scales[:, None]).all()
    assert torch.equal(quantized.scales, weight.abs().amax(1) / 127)
    assert quantized.nbytes == 30 * 64 + 30 * 4


def test_other_types_and_layouts_are_multiplied_as_they_are() -> None:
    weight = torch.randn(20, 40, dtype=torch.float64)
    x = torch.randn(3, 40, dtype=torch.float64)
    assert torch.equal(Linear(weight)(x), torch.nn.functional.linear(x, weight))
    across = torch.randn(40, 20).T
    assert an_error(Linear(across)(x.float()), x.float(), across, None) < 1e-6
    strided = torch.randn(40, 3).T
    assert an_error(Linear(across)(strided), strided, across, None) < 1e-6
    assert Linear(across).nbytes == 20 * 40 * 4


def test_without_the_library_everything_goes_through_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "load", lambda: None)
    weight, bias, x = torch.randn(300, 64), torch.randn(300), torch.randn(5, 64)
    integers = Int8Linear.quantize(weight, bias)
    assert torch.equal(Linear(weight, bias)(x), torch.nn.functional.linear(x, weight, bias))
    assert an_error(integers(x), x, integers.dequantized(), bias) < 1e-6


def test_no_lines_give_no_lines() -> None:
    assert Linear(torch.randn(5, 8))(torch.randn(0, 8)).shape == (0, 5)
    assert Int8Linear.quantize(torch.randn(5, 8))(torch.randn(0, 8)).shape == (0, 5)
