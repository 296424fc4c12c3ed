"""`fit_classifier`: a classifier of noised states, by which `classifier` guides."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..common.capabilities import Capability
from ..common.checks import (
    brief_repr,
    check_budget,
    check_generator,
    real_number,
    whole_number,
)
from ..common.inputs import INTEGERS, as_tensor
from ..common.modules import leave_inference
from ..common.names import suggest_arguments
from ..common.progress import check_progress
from ..common.random import NETWORK, draw_seed, isolated
from ..common.seeds import takes_seed
from ..guidance.classifier_networks import usual_net
from ..guidance.guided import require_part
from ..guidance.noisy_classifier import NoisyClassifier
from ..model.class_words import coded, wordy
from ..model.protocol import Model
from ..model.require import require_tensors
from .classifier_run import ClassifierRun


@takes_seed
@torch.inference_mode(False)
@suggest_arguments
def fit_classifier(
    sde: Model,
    data: tuple[Any, Any],
    classes: int | None = None,
    *,
    net: nn.Module | None = None,
    steps: int = 2000,
    batch_size: int = 512,
    lr: float = 2e-3,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    progress: bool | None = None,
) -> NoisyClassifier:
    """Train a classifier p(y | z, φ) of noised data, for `classifier` to guide the model with.

    Minimizes the cross-entropy of logits log p(y) + cos φ·f(z, φ) over states
    z = cos φ·x̃0 + sin φ·ε, with φ uniform over the model's part of the arc, stratified. A tenth of
    the rows is held out (see `fit`): training stops when their loss stays high, and the average of
    the weights that had the lowest one is kept.

    Parameters
    ----------
    sde : ScoreSDE
        The model to be guided, fitted: the classifier takes its standardization and its levels.
    data : (x, y)
        Samples x of shape (N, *shape), in the units of the data, and their classes y (N,):
        integers from 0, or words.
    classes : int, optional
        How many there are: by default as many as y has.
    net : nn.Module, optional
        f, called as net(z, u) with standardized states z (B, *shape) and noise labels u (B,) of
        about log(σ/α); returns (B, classes). It is trained in place. By default an MLP, or for
        shape (C, H, W) a small convolutional network, whose last layer starts at 0.
    steps : int
        Optimizer steps, at most.
    batch_size : int
        Samples a step.
    lr : float
        Peak learning rate of Adam, with warm-up and cosine decay to 0.
    generator : torch.Generator, optional
        The randomness: weights, batches, noise.
    seed : int, optional
        An integer in place of the generator.
    progress : bool, optional
        Show a progress bar. By default on a terminal, from two seconds on.

    Returns
    -------
    NoisyClassifier
        A module in eval mode, called as net(z, φ) -> logits (B, classes).

    Raises
    ------
    TypeError, ValueError
        For labels that are no integers from 0, classes without rows, a single class, x of another
        shape or with NaN, or a model without a score.
    TrainingError
        If the loss is not finite.

    Warns
    -----
    UserWarning
        If on held-out rows it is no better than the frequencies of the classes.

    References
    ----------
    Dhariwal and Nichol, Diffusion models beat GANs on image synthesis, NeurIPS 2021.

    Examples
    --------
    >>> x = torch.randn(200, 2)
    >>> y = (x[:, 0] > 0).long()
    >>> sde = scoresde.build("vp", "mlp", shape=(2,)).standardize(x)
    >>> net = scoresde.fit_classifier(sde, (x, y), steps=50, progress=False)
    >>> net(torch.zeros(5, 2), 0.3).shape
    torch.Size([5, 2])
    >>> guided = scoresde.classifier(sde, net, y=1)
    """
    model = require_part(
        require_tensors(sde, "fit_classifier"), "fit_classifier", Capability.SCORE
    )
    check_generator(generator)
    steps = whole_number("steps", steps)
    batch_size = whole_number("batch_size", batch_size)
    lr = real_number("lr", lr, 0, math.inf)
    progress = check_progress(progress)
    check_budget(f"steps={steps}", calls=steps)
    if net is not None and not isinstance(net, nn.Module):
        raise TypeError(f"net is an nn.Module, got {brief_repr(net)}")
    x, y, frequencies, words = _taken(model, data, classes)
    seed = draw_seed(generator)
    with isolated(model.device) as reseed, torch.enable_grad():
        reseed(seed, NETWORK)
        if net is None:
            net = usual_net(tuple(model.shape), len(frequencies))
        leave_inference(net)
        made = NoisyClassifier(net.to(model.device), frequencies, model)
        made.words = words
        if len(x):
            made(model.standardization.spread(model.from_data(x[:1])), 0.5)  # its shape
        run = ClassifierRun(model, made, x, y, seed)
        run.train(steps, min(batch_size, len(x)), lr, progress)
    return made.eval()


def _taken(
    model: Model, data: Any, classes: int | None
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Samples, labels, the frequencies of the classes and their words, all checked."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise TypeError(f"data is a pair (x, labels), got {brief_repr(data)}")
    x = model.accept(data[0])
    labels = data[1]
    if hasattr(labels, "to_numpy"):
        labels = labels.to_numpy()
    words: tuple[str, ...] = ()
    if wordy(labels) or getattr(getattr(labels, "dtype", None), "kind", "") == "O":
        labels = coded("y", labels)
        words = getattr(labels, "words", ())
    y = as_tensor(labels, "labels")
    if y.dtype not in INTEGERS or y.dtype == torch.bool:
        raise TypeError(f"labels have dtype {y.dtype}, wanted integers: classes from 0")
    if tuple(y.shape) != (len(x),):
        raise ValueError(
            f"labels have shape {tuple(y.shape)} for {len(x)} samples, wanted ({len(x)},)"
        )
    y = y.long().to(model.device)
    most = int(y.max())
    if classes is None:
        classes = max(most + 1, len(words))
    classes = whole_number("classes", classes)
    if int(y.min()) < 0 or most >= classes:
        raise ValueError(
            f"labels run from {int(y.min())} to {most}, and classes is {classes}: they are "
            "numbered from 0"
        )
    counts = y.bincount(minlength=classes)
    present = int((counts > 0).sum())
    if present == 1:
        raise ValueError(
            f"all {len(x)} samples are of class {most}: there is nothing to tell apart"
        )
    if present < classes:
        empty = (counts == 0).nonzero()[:8, 0].tolist()
        raise ValueError(
            f"{classes - present} of {classes} classes have no samples, such as {empty}: number "
            "those that have from 0"
        )
    return x, y, counts.double() / len(y), words
