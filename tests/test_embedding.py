"""What networks are shown beside the state: waves of it against a Gaussian quadrature, conditions
against their statement.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import generator
from scoresde.backbones.embedding import Embedding


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 8), (1, 4, 4), (2, 2, 3, 2)])
def test_waves_are_those_of_the_state_blurred_by_its_own_noise(shape: tuple[int, ...]) -> None:
    """E_ξ sin ω(x + sin φ·ξ), ξ ~ N(0, 1), by Gauss–Hermite quadrature of 200 nodes, for label t =
    log tan φ.
    """
    embed = Embedding(shape, width=4, features=4, octaves=3).double()
    x, t = normal(5, *shape), torch.tensor([-6.0, -4.0, -2.0, -1.0, -0.5], dtype=torch.float64)
    seen, _ = embed(x, t)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(200))
    blurred = (
        x.unsqueeze(-1)
        + torch.sin(torch.atan(torch.exp(t))).view(-1, *[1] * len(shape), 1) * nodes
    )
    parts = [x]
    for f in (1, 2, 4):
        for wave in (torch.sin, torch.cos):
            parts.append(
                (wave(2 * math.pi * f * blurred) * weights).sum(-1) / math.sqrt(2 * math.pi)
            )
    assert seen.shape[1] == embed.channels == 7 * shape[0]
    torch.testing.assert_close(seen, torch.cat(parts, 1), rtol=0, atol=1e-10)


def test_conditions_are_left_out_together_and_as_often_as_asked() -> None:
    """Binomial, n = 4,000, p = 0.3: 4.5 standard deviations, a false alarm in 1.5e5."""
    embed = Embedding(
        (1, 2), width=3, features=4, classes=2, vector=2, image=1, condition_dropout=0.3
    ).double()
    with torch.no_grad():
        embed.label.weight.copy_(torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 0]]))  # type: ignore[union-attr]
        embed.vector.weight.copy_(torch.tensor([[0.0, 0], [1.0, 0], [0.0, 1]]))  # type: ignore[union-attr]
        for layer in (embed.first, embed.last):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        embed.null_vector.copy_(torch.tensor([0.0, 5, 0]))  # type: ignore[union-attr]
        embed.null_image.copy_(torch.tensor([0.0, 0, 7]))  # type: ignore[union-attr]
    none = torch.tensor([0.0, 5, 7], dtype=torch.float64)
    n = 4000
    x, t, y = normal(n, 1, 2), normal(n, seed=1), torch.arange(n) % 2
    vector, image = normal(n, 2, seed=2), normal(n, 1, 2, seed=3)
    seen, told = embed(
        x, t, **embed.drop_conditions({"y": y, "vector": vector, "image": image}, generator(4))
    )
    shown = told[:, 0] != 0
    assert abs(int((~shown).sum()) - 0.3 * n) < 4.5 * math.sqrt(n * 0.3 * 0.7)
    whole = torch.cat([(y + 1).double().unsqueeze(1), vector], 1)
    torch.testing.assert_close(told, torch.where(shown.unsqueeze(1), whole, none))
    torch.testing.assert_close(seen, torch.cat([x, image * shown.view(-1, 1, 1)], 1))
    seen, told = embed(x, t, y=y, vector=vector, image=image)
    torch.testing.assert_close(told, whole)
    torch.testing.assert_close(seen, torch.cat([x, image], 1))
    seen, told = embed(x, t)
    torch.testing.assert_close(told, none.expand(n, 3))
    assert not seen[:, 1].any()
    given = {
        "y": torch.full((n,), 2),
        "vector": torch.full((n, 2), math.nan),
        "image": torch.full((n, 1, 2), math.nan),
    }
    torch.testing.assert_close(embed(x, t, **given), (seen, told), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"octaves": -1}, "octaves is at least 0"),
        ({"octaves": 13}, "octaves=13"),
        ({"condition_dropout": 1.5}, "condition_dropout is between 0 and 1"),
        ({"waves": "sine"}, "sinusoidal"),
        ({"features": 0}, "features is at least 2"),
        ({"features": 5}, "features is even, as many sines as cosines, got 5; try 6"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Embedding((1, 8), **{"width": 4, "features": 4, **options})  # type: ignore[arg-type]


def test_points_have_no_channels() -> None:
    with pytest.raises(ValueError, match=r"octaves=2 joins channels.*\(3,\) has none"):
        Embedding((3,), width=4, features=4, octaves=2)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"y": torch.tensor([2])}, "labels y run from 0 to 1, got 2 to 2"),
        ({"y": torch.tensor([-1, 0])}, "labels y run from 0 to 1, got -1 to 0"),
        ({"y": torch.tensor([0.0])}, "integers of shape"),
        ({"y": torch.tensor([[0]])}, "integers of shape"),
        ({"vector": torch.zeros(1, 3)}, r"vector has shape \(n, 2\), got \(1, 3\)"),
        ({"image": torch.zeros(1, 1, 9)}, r"image has shape \(n, 1, 8\), got \(1, 1, 9\)"),
        ({"vector": torch.tensor([[math.nan, 0.0]])}, "NaN"),
        ({"vector": torch.tensor(1.0)}, r"vector has shape \(n, 2\), got \(\)"),
    ],
)
def test_bad_conditions(condition: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Embedding((1, 8), width=4, features=4, classes=2, vector=2, image=1).check_condition(
            **condition
        )


def test_a_condition_that_was_always_there_is_missed() -> None:
    embed = Embedding((1, 8), width=4, features=4, classes=2, condition_dropout=0)
    with pytest.raises(ValueError, match=r"always with y: write sde\.given\(y=\.\.\.\)"):
        embed(torch.zeros(1, 1, 8), torch.zeros(1))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)])
def test_noise_labels_are_one_a_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"noise labels t have shape \(2,\), one a sample, got"):
        Embedding((1, 8), width=4, features=4)(torch.zeros(2, 1, 8), torch.zeros(shape))


def test_a_noise_label_is_seen_at_frequencies_in_a_geometric_row() -> None:
    embed = Embedding((2,), width=6, features=6).double()
    for layer in (embed.first, embed.last):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    t = normal(4)
    waves = [wave(t * rate) for wave in (torch.sin, torch.cos) for rate in (0.1, 1.0, 10.0)]
    wanted = torch.stack([w * torch.sigmoid(w) for w in waves], 1)
    # frequencies are float32
    torch.testing.assert_close(embed(normal(4, 2), t)[1], wanted, rtol=0, atol=1e-5)
