"""Paths against their definitions: derivatives, SDE coefficients, kernels, inverses, ends, the
discrete grid.
"""

from __future__ import annotations

import math

import pytest
import torch

import scoresde
from scoresde import EDM, VESDE, VPSDE, Cosine, Process, RectifiedFlow, SubVPSDE
from scoresde.processes.functions import inverse
from scoresde.processes.prediction import coefficients, singular

T = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


def test_derivatives_equal_autodiff(process: Process) -> None:
    torch.testing.assert_close(
        process.dalpha(T), Process.dalpha(process, T), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        process.dsigma(T), Process.dsigma(process, T), rtol=1e-12, atol=1e-12
    )


def test_time_inverts_phi_in_closed_form_and_without(process: Process) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    phi = process.phi(t)
    assert bool((phi[1:] > phi[:-1]).all())
    torch.testing.assert_close(process.time(phi), t, rtol=0, atol=1e-13)
    torch.testing.assert_close(Process.time(process, phi), t, rtol=0, atol=1e-13)


@pytest.mark.parametrize("count", [1, 20, 600, 3000])  # 10, 7, 2 bits a round, and 1
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_inverse_without_closed_form_is_right_to_the_last_bit(
    dtype: torch.dtype, count: int
) -> None:
    """Also where the function is flat, steep, or jumps."""
    values = torch.linspace(0, 1, count + 1, dtype=dtype)[1:]
    ulp = torch.finfo(dtype).eps
    functions = (torch.sqrt, lambda t: t**9, lambda t: t.ceil(), lambda t: (t > 0.3) * 1.0 + t)
    for function in functions:
        t = inverse(function, values)
        assert t.dtype == dtype
        assert bool((function((t - ulp).clamp_min(0)) <= values).all())
        assert bool((function(t + ulp) >= values).all())


def test_sde_has_the_marginals(process: Process) -> None:
    """α̇ = f·α and d(σ²)/dt = 2f·σ² + g² are the moment equations of dx = f·x dt + g dw."""
    f, g2 = process.f(T), process.g2(T)
    torch.testing.assert_close(process.dalpha(T), f * process.alpha(T), rtol=1e-12, atol=1e-12)
    variance_rate = 2 * process.sigma(T) * process.dsigma(T)
    torch.testing.assert_close(
        variance_rate, 2 * f * process.sigma(T) ** 2 + g2, rtol=1e-10, atol=1e-10
    )
    assert bool((g2 > 0).all())


def test_transition_composes_with_the_marginal(process: Process) -> None:
    s, t = T[:-1], T[1:]
    for early, late in ((s, t), (torch.zeros_like(t), t), (s, torch.ones_like(s)), (s, s)):
        a, v = process.transition(early, late)
        torch.testing.assert_close(
            a * process.alpha(early), process.alpha(late), rtol=1e-12, atol=1e-12
        )
        total = a**2 * process.sigma(early) ** 2 + v
        torch.testing.assert_close(total, process.sigma(late) ** 2, rtol=1e-12, atol=1e-12)


def test_coefficients_of_song_et_al() -> None:
    """Song et al. 2021, appendix B and C, written out."""
    b = 0.1 + T * 19.9
    integral = 0.1 * T + 0.5 * 19.9 * T**2
    vp, sub, ve = VPSDE(0.1, 20.0), SubVPSDE(0.1, 20.0), VESDE(0.01, 50.0)
    torch.testing.assert_close(vp.alpha(T), torch.exp(-0.5 * integral))
    torch.testing.assert_close(vp.sigma(T), (1 - torch.exp(-integral)).sqrt())
    torch.testing.assert_close(vp.g2(T), b)
    torch.testing.assert_close(Process.g2(vp, T), b)
    torch.testing.assert_close(sub.sigma(T), 1 - torch.exp(-integral))
    torch.testing.assert_close(sub.g2(T), b * (1 - torch.exp(-2 * integral)))
    torch.testing.assert_close(Process.g2(sub, T), sub.g2(T))
    sigma = 0.01 * 5000**T
    torch.testing.assert_close(ve.sigma(T), sigma)
    torch.testing.assert_close(ve.g2(T), 2 * sigma**2 * math.log(5000))


def test_edm_grid_is_equation_5() -> None:
    i, n = torch.arange(10, dtype=torch.float64), 10
    wanted = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(EDM().sigma(1 - i / (n - 1)), wanted)
    times = scoresde.processes.spacings.grid(EDM(), n - 1, "karras")
    torch.testing.assert_close(EDM().sigma(times), wanted)


def test_vp_sigma_keeps_its_digits_in_float32() -> None:
    """√(1 − exp(·)) is 0.6% off at t = 1e-5 in float32."""
    t = torch.tensor([1e-7, 1e-5, 1e-3, 0.5], dtype=torch.float64)
    exact = VPSDE().sigma(t)
    assert ((VPSDE().sigma(t.float()).double() - exact) / exact).abs().max() < 3e-7


@pytest.mark.parametrize("steps", [100, 1000])
def test_ddpm_times_have_the_discrete_noise_levels(steps: int) -> None:
    beta = torch.linspace(0.1 / steps, 20.0 / steps, steps, dtype=torch.float64)
    times = VPSDE().ddpm_times(steps)
    torch.testing.assert_close(
        VPSDE().alpha(times[1:]) ** 2, torch.cumprod(1 - beta, 0), rtol=1e-12, atol=0
    )
    a, v = VPSDE().transition(times[:-1], times[1:])
    torch.testing.assert_close(a**2, 1 - beta, rtol=1e-10, atol=0)
    torch.testing.assert_close(v, beta, rtol=1e-9, atol=0)


def test_ends() -> None:
    assert [p.ends_in_noise for p in (VPSDE(), VESDE(), Cosine(), RectifiedFlow())] == [
        False,
        False,
        True,
        True,
    ]
    assert VPSDE().phi_min == RectifiedFlow().phi_min == Cosine().phi_min == 0.0
    assert RectifiedFlow().phi_max == Cosine().phi_max == math.pi / 2
    assert VESDE().phi_min == math.atan(0.01)
    assert VPSDE() == VPSDE(0.1, 20.0) != VPSDE(0.1, 10.0)


def test_reverse_noise_is_g2_unless_that_is_infinite(process: Process) -> None:
    noise = process.reverse_g2(torch.linspace(0, 1, 11, dtype=torch.float64))
    assert bool(noise.isfinite().all())
    if not process.ends_in_noise:
        torch.testing.assert_close(process.reverse_g2(T), process.g2(T))
    else:
        torch.testing.assert_close(
            process.reverse_g2(T), process.g2(T) * torch.cos(process.phi(T)) ** 2
        )


def test_prior_has_the_second_moment_of_standardized_data(process: Process) -> None:
    prior = process.prior((3,))
    variance = process.alpha(torch.ones(1)) ** 2 + process.sigma(torch.ones(1)) ** 2
    torch.testing.assert_close(prior.variance.float(), variance.expand(3))
    assert prior.event_shape == (3,)


@pytest.mark.parametrize("spacing", list(scoresde.SPACINGS))
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 250])
def test_grids_run_from_noise_to_data(process: Process, spacing: str, steps: int) -> None:
    if spacing == "ddpm" and (process not in (VPSDE(), Cosine()) or 1000 % steps):
        with pytest.raises(ValueError, match="ddpm"):
            scoresde.processes.spacings.grid(process, steps, spacing)
        return
    times = scoresde.processes.spacings.grid(process, steps, spacing)
    assert len(times) == steps + 1
    assert float(times[-1]) == 0
    assert abs(float(times[0]) - 1) < (0.004 if spacing == "ddpm" else 1e-15)
    assert bool((times[1:] < times[:-1]).all())


def test_grid_spacings_are_uniform_in_what_they_say() -> None:
    def even(values: torch.Tensor) -> bool:
        steps = values.diff()
        return bool(((steps - steps.mean()).abs() < 1e-9 * steps.abs().mean()).all())

    ve = VESDE()
    assert even(ve.phi(scoresde.processes.spacings.grid(ve, 20, "arc")))
    assert even(scoresde.processes.spacings.grid(ve, 20, "time"))
    assert even(ve.sigma(scoresde.processes.spacings.grid(ve, 20, "logsnr")).log())
    assert even(ve.sigma(scoresde.processes.spacings.grid(ve, 20, "karras")) ** (1 / 7))
    flow = RectifiedFlow()
    inner = scoresde.processes.spacings.grid(flow, 20, "logsnr")[1:-1]
    assert even(torch.log(flow.sigma(inner) / flow.alpha(inner)))


def test_discrete_sigma_range_of_a_users_process_is_found() -> None:
    process = scoresde.PROCESSES.build("test_polynomial")
    assert process.ends_in_noise
    assert process.phi_min == 0.0
    assert abs(float(process.phi(process.time(0.7))) - 0.7) < 1e-14


def test_predictions_by_hand() -> None:
    """At t = 0 of a rectified flow v = ε − x0; at t = 1 ε says nothing about the data."""
    flow = RectifiedFlow()
    at_data = coefficients("v", flow, torch.tensor(0.0, dtype=torch.float64))
    assert [float(c) for c in at_data] == [1.0, 0.0, -1.0, 1.0, 1.0]
    lost = [name for name in scoresde.PREDICTIONS if singular(name, flow, flow.phi_max)]
    assert lost == ["eps", "score"]


def test_a_grid_by_hand() -> None:
    wanted = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)
    assert torch.equal(scoresde.processes.spacings.grid(VPSDE(), 4, "time"), wanted)


def test_the_floor_has_its_old_name_for_a_version() -> None:
    with pytest.warns(DeprecationWarning, match="Floored.hair is now .phi_floor") as told:

        class Floored(scoresde.RectifiedFlow):
            hair = 1e-3

    assert told[0].filename == __file__
    assert Floored().phi_floor == 1e-3
    with pytest.warns(DeprecationWarning, match="hair is now .phi_floor"):
        assert Floored().hair == 1e-3
    assert scoresde.RectifiedFlow().phi_floor == 1e-4
