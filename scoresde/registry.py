"""One table of named things, used three times: for processes, backbones and solvers.

A class that is registered under a name can be built from that name, remembers the options it was built with
(so that a saved model can say how to rebuild it), and is enrolled in every test that loops over the registry.

A name may also be an alias, which stands for another with options (a preset); a family, "library:member"; or a plug-in: an
entry point of an installed package, in the group that is called as the table is, in lower case,

    [project.entry-points."scoresde.backbones"]
    mynet = "mypkg:MyNet"

A plug-in is looked up when a name is missing, and loaded when it is asked for: never at the import of scoresde, never in place
of a name that there is, and never for a file (see `loaded_only`).
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

from .checks import said

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=type)

_OPEN: ContextVar[bool] = ContextVar("_OPEN", default=True)


ELSEWHERE: dict[str, str] = {
    name: instead
    for names, instead in (
        ("seed random_state random_seed rng", "randomness comes from generator=torch.Generator().manual_seed(seed)"),
        ("device", "it runs where the model is: write sde.to(device)"),
        ("dtype precision", "it runs in the dtype of the model: write sde.double() or sde.float()"),
        (
            "progress progress_bar show_progress show_progress_bars verbose disable_tqdm tqdm",
            "only fit, reflow and evaluate show a bar, progress=True",
        ),
        ("num_samples n_samples nsamples num size sample_shape", "the number of samples is n"),
        ("num_steps n_steps nsteps num_inference_steps num_timesteps timesteps", "write steps="),
        ("epochs max_epochs num_epochs n_epochs", "write steps=, which are epochs * len(data) // batch_size"),
        ("iterations num_iterations n_iter max_iter", "write steps="),
        ("method sampler scheduler algorithm", "write solver=, a name in scoresde.SOLVERS"),
        ("tol tolerance", "write rtol= and atol="),
        ("batch batchsize bs", "write batch_size="),
        ("learning_rate", "write lr="),
        ("optimizer optim", "fit takes Adam, with lr="),
        (
            "y label labels class_labels cond condition conditions context conditioning",
            "write sde.given(y=...), and in fit given={'y': ...}",
        ),
        ("guidance guidance_scale cfg cfg_scale", "this version has no guidance; sde.given(y=...) conditions"),
        ("x_T xT latent latents init_noise", "write scoresde.decode(sde, latent)"),
        ("return_trajectory trajectory return_all return_intermediates", "write scoresde.solve(sde, n, times=...)"),
        ("t_span t_eval ts", "write scoresde.solve(sde, n, times=...), decreasing from 1 to 0"),
        ("num_probes n_probes", "write probes=, with trace='hutchinson'"),
        ("checkpoint_dir save_dir output_dir folder path", "write out=, a folder"),
    )
    for name in names.split()
}
"""What arguments of other libraries are called here: by name, what to write instead."""


def nearest(name: str, choices: Iterable[str], offered: Iterable[str] = ()) -> str:
    """Say which names there are, the nearest first: the end of every "unknown name" message.

    Parameters
    ----------
    name : str
        What was asked for.
    choices : iterable of str
        What there is.
    offered : iterable of str
        What there is too, but is not listed.

    Returns
    -------
    str
        A sentence.

    Examples
    --------
    >>> nearest("rk54", ["euler", "rk45"])
    "Did you mean 'rk45'? There are: euler, rk45."
    """
    choices = sorted(choices)
    plain = {_plain(choice): choice for choice in (*offered, *choices)}
    if not plain:
        return "It takes none."
    near = difflib.get_close_matches(_plain(str(name)), plain, n=1, cutoff=0.5)
    hint = f"Did you mean {plain[near[0]]!r}? " if near else ""
    return f"{hint}There are: {', '.join(choices)}."


def choose(kind: str, name: object, choices: Iterable[str]) -> str:
    """Return name if it is one of the choices; raise ValueError with the nearest otherwise."""
    if isinstance(name, str) and name in choices:
        return name
    raise ValueError(f"unknown {kind} {said(name)}. {nearest(said(name, str), choices)}")


def explained(verb: Callable[P, T]) -> Callable[P, T]:
    """Let a function answer an unknown keyword with what to write, rather than with Python's own TypeError."""
    known = list(inspect.signature(verb).parameters)

    @functools.wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in known:
                instead = f": {ELSEWHERE[name]}" if name in ELSEWHERE else f". {nearest(name, known)}"
                raise TypeError(f"{verb.__name__} has no argument {name!r}{instead}")
        return verb(*args, **kwargs)

    return call


def _plain(name: str) -> str:
    """A name as people spell it elsewhere: "DPM++ 2M" is "dpmpp2m"."""
    return re.sub(r"[-_ .]", "", name.lower().replace("++", "pp"))


@contextlib.contextmanager
def loaded_only() -> Iterator[None]:
    """Let registries build only what has been loaded, and load no plug-in, within a `with` or a decorated function.

    For names that come from a file: these must not choose what code is imported, not even in a network that builds another.

    Examples
    --------
    >>> with loaded_only():
    ...     scoresde.PROCESSES.build("vp")
    VPSDE(beta_min=0.1, beta_max=20.0)
    """
    before = _OPEN.set(False)
    try:
        yield
    finally:
        _OPEN.reset(before)


def may_import() -> bool:
    """Whether a name may choose what is imported: not within `loaded_only`.

    Returns
    -------
    bool

    Examples
    --------
    >>> with loaded_only():
    ...     may_import()
    False
    """
    return _OPEN.get()


class Registry(Generic[T]):
    """A mapping from names to the classes (or factories) that build things of one kind.

    Parameters
    ----------
    kind : str
        What is registered here, for messages: "process", "backbone", "solver".
    table : str, optional
        Where the registry is found, for messages; by default the kind's plural in capitals, in `scoresde`. In lower case it
        is the group of the entry points of plug-ins.

    Examples
    --------
    >>> ANIMALS = Registry[object]("animal")
    >>> @ANIMALS.register("cat")
    ... class Cat:
    ...     def __init__(self, legs=4): self.legs = legs
    >>> ANIMALS.build("cat", legs=3).legs
    3
    >>> ANIMALS.name_of(Cat()), ANIMALS.options_of(Cat(legs=5))
    ('cat', {'legs': 5})
    >>> ANIMALS.build("cta")
    Traceback (most recent call last):
    ValueError: unknown animal 'cta'. Did you mean 'cat'? There are: cat.
    """

    def __init__(self, kind: str, table: str | None = None) -> None:
        self.kind = kind
        self.table = table or f"scoresde.{kind.upper()}{'E' if kind.endswith('s') else ''}S"
        self.elsewhere: Mapping[str, str] = {}  # what to write instead of options that other libraries have
        self._makers: dict[str, Callable[..., T]] = {}
        self._aliases: dict[str, tuple[str, dict[str, Any]]] = {}
        self._families: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Register the decorated class under a name.

        Parameters
        ----------
        name : str
            The name; a name that is taken raises.

        Returns
        -------
        callable
            A decorator that returns the class itself, whose instances now remember their options.

        Raises
        ------
        ValueError
            If the name is taken by another class.

        Examples
        --------
        >>> import math, torch, scoresde
        >>> @scoresde.PROCESSES.register("doctest_cosine")
        ... class Cosine(scoresde.Process):
        ...     def alpha(self, t): return torch.cos(0.5 * math.pi * t)
        ...     def sigma(self, t): return torch.sin(0.5 * math.pi * t)
        >>> "doctest_cosine" in scoresde.PROCESSES
        True
        >>> scoresde.PROCESSES.remove("doctest_cosine")
        """

        if not isinstance(name, str):
            raise TypeError(f"write @{self.table}.register('name')")

        def decorate(cls: C) -> C:
            self._check_free(name, cls)
            _remember_options(cls)
            self._makers[name] = cls
            return cls

        return decorate

    def add(self, name: str, maker: Callable[..., T]) -> None:
        """Register a factory (a function returning an object) under a name.

        Parameters
        ----------
        name : str
            The name.
        maker : callable
            Called with the options given by the user.

        Examples
        --------
        >>> NUMBERS = Registry[int]("number")
        >>> NUMBERS.add("seven", lambda: 7)
        >>> NUMBERS.build("seven")
        7
        """
        self._check_free(name, maker)
        self._makers[name] = maker

    def alias(self, name: str, target: str, **options: Any) -> None:
        """Let a second name stand for a registered one, with options; it is not listed.

        Parameters
        ----------
        name : str
            The other name, as another library spells it, or that of a preset.
        target : str
            A registered name. What is built is its own, and `name_of` says so.
        **options
            What it is built with, unless the user says otherwise.

        Raises
        ------
        ValueError
            If there is no such target, or the name is taken.

        Examples
        --------
        >>> NUMBERS = Registry[int]("number")
        >>> NUMBERS.add("seven", lambda: 7); NUMBERS.alias("sept", "seven")
        >>> NUMBERS.build("sept"), list(NUMBERS)
        (7, ['seven'])
        >>> NUMBERS.add("power", lambda base, exponent=1: base**exponent); NUMBERS.alias("square", "power", exponent=2)
        >>> NUMBERS.build("square", 3), NUMBERS.build("square", 3, exponent=4)
        (9, 81)
        """
        if target not in self._makers:
            raise ValueError(f"unknown {self.kind} {target!r}. {nearest(target, self._makers)}")
        if self._aliases.get(name) != (target, options):
            self._check_free(name, None)
        self._aliases[name] = target, options

    def family(self, prefix: str, maker: Callable[..., T]) -> None:
        """Let names of the form "prefix:member" be built by maker(member, **options); they are not listed.

        Parameters
        ----------
        prefix : str
            Usually the name of another library.
        maker : callable
            Called with the member's name and the options given by the user. If it is a class, its instances remember both.

        Examples
        --------
        >>> NUMBERS = Registry[int]("number")
        >>> NUMBERS.family("int", lambda digits: int(digits))
        >>> NUMBERS.build("int:42")
        42
        """
        if isinstance(maker, type):
            _remember_options(maker)
        self._families[prefix] = maker

    def remove(self, name: str) -> None:
        """Forget a name, and those that stand for it.

        Parameters
        ----------
        name : str
            A registered name.

        Examples
        --------
        >>> NUMBERS = Registry[int]("number")
        >>> NUMBERS.add("seven", lambda: 7); NUMBERS.remove("seven"); list(NUMBERS)
        []
        """
        if name not in self:
            raise self._unknown(name)
        self._aliases = {alias: told for alias, told in self._aliases.items() if name not in (alias, told[0])}
        self._makers.pop(name, None)

    def _check_free(self, name: str, maker: object) -> None:
        taken = self._makers.get(name)
        if ":" in name and name.partition(":")[0] in self._families:
            raise ValueError(f"names like {name!r} belong to {name.partition(':')[0]}; choose another")
        if name in self._aliases or (taken is not None and _place(taken) != _place(maker)):
            by = f"stands for {self._aliases[name][0]!r}" if name in self._aliases else f"is taken by {taken!r}"
            raise ValueError(f"the {self.kind} name {name!r} {by}; choose another")

    def build(self, name: str, *args: Any, **options: Any) -> T:
        """Build what is registered under `name`.

        Parameters
        ----------
        name : str
            A registered name.
        *args, **options
            Passed on; an option the maker does not have raises, with the nearest one offered.

        Returns
        -------
        object
            What the registered class or factory returns.

        Raises
        ------
        ValueError
            If the name or an option is unknown.
        TypeError
            If `name` is not a string.
        ImportError
            If the name is a plug-in's, and its package does not import.

        Examples
        --------
        >>> import scoresde
        >>> scoresde.PROCESSES.build("vp", beta_max=10.0)
        VPSDE(beta_min=0.1, beta_max=10.0)
        """
        if not isinstance(name, str):
            raise TypeError(f"a {self.kind} name is a string, got {type(name).__name__}")
        maker = self[name]
        parameters = inspect.signature(maker).parameters if options else {}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            for option in options:
                if option not in parameters:
                    known = list(parameters)[len(args) :]
                    instead = f": {self.elsewhere[option]}" if option in self.elsewhere else f". {nearest(option, known)}"
                    raise ValueError(f"{self.kind} {name!r} has no option {option!r}{instead}")
        options = {option: value.item() if isinstance(value, np.generic) else value for option, value in options.items()}
        return maker(*args, **options)

    def name_of(self, thing: object) -> str:
        """Return the name under which the class of `thing` is registered.

        Parameters
        ----------
        thing : object
            An instance of a registered class.

        Returns
        -------
        str
            Its name.

        Raises
        ------
        ValueError
            If its class is not registered.

        Examples
        --------
        >>> import scoresde
        >>> scoresde.PROCESSES.name_of(scoresde.VPSDE())
        'vp'
        """
        for name, maker in self._makers.items():
            if maker is type(thing):
                return name
        for prefix in self._families_of(thing):
            return f"{prefix}:{next(iter(thing._options.values()))}"  # type: ignore[attr-defined]
        raise ValueError(
            f"{type(thing).__name__} is not a registered {self.kind}: decorate the class with @{self.table}.register('name')"
        )

    def options_of(self, thing: object) -> dict[str, Any]:
        """Return the options that an instance of a registered class was built with.

        Parameters
        ----------
        thing : object
            An instance of a registered class.

        Returns
        -------
        dict
            By name; defaults that were not given are left out, as is what `name_of` says.

        Examples
        --------
        >>> import scoresde
        >>> scoresde.PROCESSES.options_of(scoresde.VPSDE(beta_max=10.0))
        {'beta_max': 10.0}
        """
        given = getattr(thing, "_options", {})
        return dict(list(given.items())[bool(self._families_of(thing)) :])

    def _families_of(self, thing: object) -> list[str]:
        return [prefix for prefix, maker in self._families.items() if maker is type(thing)]

    def __repr__(self) -> str:
        """Kind and names."""
        return f"<{self.kind} registry: {', '.join(self._makers)}>"

    def __contains__(self, name: object) -> bool:
        """Whether the name is registered, or stands for one that is; members of families are not looked up."""
        return name in self._makers or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        """Names in the order of registration."""
        return iter(self._makers)

    def __getitem__(self, name: str) -> Callable[..., T]:
        """The class or factory behind a name; a plug-in is loaded."""
        if name not in self and name.partition(":")[0] not in self._families:
            self._load(name)
        name, options = self._aliases.get(name, (name, {}))
        prefix, colon, member = name.partition(":")
        if colon and prefix in self._families:
            return functools.partial(self._families[prefix], member)
        if name not in self._makers:
            raise self._unknown(name)
        return functools.partial(self._makers[name], **options) if options else self._makers[name]

    def _unknown(self, name: str) -> ValueError:
        presets = [alias for alias, (_, options) in self._aliases.items() if options]
        names = {_plain(alias): alias if options else target for alias, (target, options) in self._aliases.items()}
        close = names.get(_plain(name), name)
        rest = f" Presets: {', '.join(presets)}." if presets else ""
        if self._families:
            rest += f" Of other libraries: {', '.join(f'{prefix}:…' for prefix in self._families)}."
        plugins = sorted({entry.name for entry in self._plugins()} - {*self._makers, *self._aliases})
        if plugins:
            rest += f" Of plug-ins: {', '.join(plugins)}."
        return ValueError(f"unknown {self.kind} {said(name)}. {nearest(close, self._makers, [*presets, *plugins])}{rest}")

    def _plugins(self) -> importlib.metadata.EntryPoints:
        """The entry points of this table, none of them loaded."""
        return importlib.metadata.entry_points(group=self.table.lower())

    def _load(self, name: str) -> None:
        """Load the plug-in of that name, if there is one, and register it."""
        found = {entry.value: entry for entry in self._plugins() if entry.name == name}
        if not found:
            return
        packages = " and ".join(sorted({entry.dist.name if entry.dist else value for value, entry in found.items()}))
        if not may_import() and any(entry.module not in sys.modules for entry in found.values()):
            module = next(iter(found.values())).module
            raise ValueError(
                f"the {self.kind} {name!r} is a plug-in of {packages}, and files import nothing: import {module} first "
                f"(scoresde --import {module})"
            )
        if len(found) > 1:
            raise ValueError(
                f"there are {len(found)} plug-ins for the {self.kind} {name!r}, of {packages}: uninstall all but one"
            )
        try:
            thing = next(iter(found.values())).load()
        except Exception as error:
            raise ImportError(
                f"the {self.kind} {name!r} is a plug-in of {packages}, which failed to import: {type(error).__name__}: {error}"
            ) from error
        known = next((other for other, maker in self._makers.items() if maker is thing), name)
        if name in self:
            return  # it has registered itself
        if known != name:
            self.alias(name, known)
        elif isinstance(thing, type):
            self.register(name)(thing)
        elif callable(thing):
            self.add(name, thing)
        else:
            raise TypeError(f"the {self.kind} {name!r} of {packages} is a {type(thing).__name__}, neither a class nor a function")


def _place(maker: object) -> tuple[object, object]:
    """Where something was defined: the same class, defined again in a notebook or on reload, may take its name again."""
    return getattr(maker, "__module__", None), getattr(maker, "__qualname__", maker)


def _remember_options(cls: type) -> None:
    """Wrap `cls.__init__` so that an instance keeps the arguments it was built with, by name, in `_options`."""
    init = cls.__init__  # type: ignore[misc]
    plain = init is object.__init__
    signature = inspect.Signature() if plain else inspect.signature(init)
    if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        raise TypeError(f"{cls.__name__} takes *args, which can't be saved by name; give its options names")

    @functools.wraps(init)
    def remembering(self: Any, *args: Any, **kwargs: Any) -> None:
        # Bound first, so that wrong arguments read as Python's own error.
        bound = signature.bind(*args, **kwargs) if plain else signature.bind(self, *args, **kwargs)
        given = {name: _own(value) for name, value in list(bound.arguments.items())[not plain :]}
        init(self, *args, **kwargs)
        if type(self) is cls:
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    given |= given.pop(name, {})
            object.__setattr__(self, "_options", given)

    cls.__init__ = remembering  # type: ignore[misc]


def _own(value: Any) -> Any:
    """The same, in lists and dicts of our own, which nobody else will change."""
    if type(value) in (list, tuple):
        return type(value)(map(_own, value))
    return {key: _own(each) for key, each in value.items()} if type(value) is dict else value
