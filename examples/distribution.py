"""A trained model as a distribution: a prior for somebody else's sampler, and a flow in somebody
else's training loop.

    python examples/distribution.py

Needs emcee (pip install emcee) for the first half.
"""

from __future__ import annotations

import numpy as np
import torch

import scoresde


def posterior(
    sde: scoresde.ScoreSDE, observed: float, noise: float, walkers: int = 64, steps: int = 150
) -> torch.Tensor:
    """Sample p(x | y) for y = x_1 + noise·ε, with the model as the prior of x, by emcee's ensemble
    sampler.
    """
    import emcee

    prior = scoresde.Distribution(sde, rtol=1e-3, atol=1e-3)

    def log_posterior(points: object) -> object:
        x = torch.as_tensor(points, dtype=torch.float32)
        return (prior.log_prob(x) - 0.5 * ((x[:, 1] - observed) / noise) ** 2).double().numpy()

    torch.manual_seed(0)
    sampler = emcee.EnsembleSampler(walkers, 2, log_posterior, vectorize=True)
    sampler.random_state = np.random.RandomState(0).get_state()
    sampler.run_mcmc(prior.sample((walkers,)).double().numpy(), steps)
    return torch.from_numpy(sampler.get_chain(discard=steps // 3, flat=True))


def tune(sde: scoresde.ScoreSDE, data: torch.Tensor, steps: int = 40) -> list[float]:
    """Train by maximum likelihood, in the loop that zuko's flows are trained with; return the
    losses in nats.
    """
    flow = scoresde.Distribution(sde, differentiable=True, steps=20)
    sde.train()  # the raw weights, which the optimizer moves
    optimizer, losses = torch.optim.Adam(sde.net.parameters(), lr=1e-4), []
    for step in range(steps):
        x = data[(step * 256) % len(data) :][:256]
        loss = -flow.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    sde.ema = None  # the average of weights that are no longer there
    sde.eval()
    return losses


def main(fit_steps: int = 2000, chain: int = 150, tuning: int = 40) -> tuple[float, float, float]:
    """Fit moons, infer, and train on; return the posterior's mean of x_0, and the loss before and
    after.
    """
    moons = scoresde.toy.Moons()
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(2,))
    scoresde.fit(sde, moons, steps=fit_steps)

    x = posterior(sde, observed=1.5, noise=0.1, steps=chain)
    draws = moons.sample(200_000)  # the truth, by weighting samples of the density itself
    weights = torch.softmax(-0.5 * ((draws[:, 1] - 1.5) / 0.1) ** 2, 0)
    print(
        f"E[x_0 | y] by emcee on the model: {x[:, 0].mean():.3f}, truth "
        f"{(weights * draws[:, 0]).sum():.3f}"
    )

    test = moons.sample(4000)
    before = -scoresde.log_prob(sde, test).mean().item()
    tune(sde, moons.sample(256 * tuning), steps=tuning)
    after = -scoresde.log_prob(sde, test).mean().item()
    print(
        f"NLL before and after training by maximum likelihood: {before:.3f}, {after:.3f} nats "
        f"(entropy {moons.entropy():.3f})"
    )
    return float(x[:, 0].mean()), before, after


if __name__ == "__main__":
    main()
