"""A table of named things: processes, backbones, solvers, transforms, densities, objectives.

A registered class can be built from its name. Its instances remember their options, so that a
saved model can say how to rebuild it. Every test that loops over the registry covers it.

Besides a class or factory, a name may be

- an alias: another name, with options (a preset);
- a member of a family, "library:member";
- a plug-in: an entry point of an installed package. The group is the table's name in lower case,

      [project.entry-points."scoresde.backbones"]
      mynet = "mypkg:MyNet"

A plug-in is looked up when a name is unknown, and imported when it is built. It never replaces a
registered name, and no file can load one (see `scoresde.common.plugins`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from .checks import brief_repr
from .names import nearest, plain_name
from .options import remember_options
from .plugins import load_plugin, plugin_names

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """A mapping from names to the classes or factories that build things of one kind.

    Parameters
    ----------
    kind : str
        What is registered, for messages: "process", "backbone", "solver".
    table : str, optional
        Address of the registry, for messages; by default the kind's plural in capitals, in
        `scoresde`. In lower case it is the group of plug-ins' entry points.

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
        # Options of other libraries, and what to write here instead.
        self.elsewhere: Mapping[str, str] = {}
        self._makers: dict[str, Callable[..., T]] = {}
        self._aliases: dict[str, tuple[str, dict[str, Any]]] = {}
        self._families: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Register the decorated class under a name.

        Parameters
        ----------
        name : str

        Returns
        -------
        callable
            A decorator that returns the class itself. Its instances remember their options.

        Raises
        ------
        ValueError
            If another class has the name.

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
            remember_options(cls)
            self._makers[name] = cls
            return cls

        return decorate

    def add(self, name: str, maker: Callable[..., T]) -> None:
        """Register a factory, a function that returns an object, under a name.

        Parameters
        ----------
        name : str
        maker : callable
            Called with the user's options.

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
        """Make a second name for a registered one, with options; it is not listed.

        Parameters
        ----------
        name : str
            The second name: another library's spelling, or a preset.
        target : str
            The registered name, which `name_of` returns.
        **options
            Defaults of the second name; the user's options override them.

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
        >>> NUMBERS.add("power", lambda base, exponent=1: base**exponent)
        >>> NUMBERS.alias("square", "power", exponent=2)
        >>> NUMBERS.build("square", 3), NUMBERS.build("square", 3, exponent=4)
        (9, 81)
        """
        if target not in self._makers:
            raise ValueError(f"unknown {self.kind} {target!r}. {nearest(target, self._makers)}")
        if self._aliases.get(name) != (target, options):
            self._check_free(name, None)
        self._aliases[name] = target, options

    def family(self, prefix: str, maker: Callable[..., T]) -> None:
        """Build names of the form "prefix:member" as maker(member, **options); they are not listed.

        Parameters
        ----------
        prefix : str
            Usually the name of another library.
        maker : callable
            Called with the member's name and the user's options. Instances of a class remember
            both.

        Examples
        --------
        >>> NUMBERS = Registry[int]("number")
        >>> NUMBERS.family("int", lambda digits: int(digits))
        >>> NUMBERS.build("int:42")
        42
        """
        if isinstance(maker, type):
            remember_options(maker)
        self._families[prefix] = maker

    def remove(self, name: str) -> None:
        """Forget a registered name, and its aliases.

        Parameters
        ----------
        name : str

        Examples
        --------
        >>> NUMBERS = Registry[int]("number")
        >>> NUMBERS.add("seven", lambda: 7); NUMBERS.remove("seven"); list(NUMBERS)
        []
        """
        if name not in self:
            raise self._unknown(name)
        self._aliases = {
            alias: (target, options)
            for alias, (target, options) in self._aliases.items()
            if name not in (alias, target)
        }
        self._makers.pop(name, None)

    def _check_free(self, name: str, maker: object) -> None:
        """Raise if a name is taken by anything but the same class, defined again."""
        prefix, colon, _ = name.partition(":")
        if colon and prefix in self._families:
            raise ValueError(f"names like {name!r} belong to {prefix}; choose another")
        if name in self._aliases:
            by = f"stands for {self._aliases[name][0]!r}"
        elif name in self._makers and _place(self._makers[name]) != _place(maker):
            by = f"is taken by {self._makers[name]!r}"
        else:
            return
        raise ValueError(f"the {self.kind} name {name!r} {by}; choose another")

    def build(self, name: str, *args: Any, **options: Any) -> T:
        """Build what is registered under `name`.

        Parameters
        ----------
        name : str
        *args, **options
            Passed on to the class or factory.

        Returns
        -------
        object

        Raises
        ------
        ValueError
            For an unknown name or option; the message offers the nearest one.
        TypeError
            If `name` is not a string.
        ImportError
            If a plug-in does not import.

        Examples
        --------
        >>> import scoresde
        >>> scoresde.PROCESSES.build("vp", beta_max=10.0)
        VPSDE(beta_min=0.1, beta_max=10.0)
        """
        if not isinstance(name, str):
            raise TypeError(f"a {self.kind} name is a string, got {type(name).__name__}")
        maker = self[name]
        if options:
            self._check_options(name, maker, options, len(args))
        for option, value in options.items():
            if isinstance(value, np.generic):
                options[option] = value.item()
        return maker(*args, **options)

    def _check_options(
        self, name: str, maker: Callable[..., T], options: Mapping[str, Any], skipped: int
    ) -> None:
        """Raise for an option that a maker does not have; `skipped` arguments come by position."""
        parameters = inspect.signature(maker).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        for option in options:
            if option in parameters:
                continue
            hint = f". {nearest(option, list(parameters)[skipped:])}"
            if option in self.elsewhere:
                hint = f": {self.elsewhere[option]}"
            raise ValueError(f"{self.kind} {name!r} has no option {option!r}{hint}")

    def name_of(self, thing: object) -> str:
        """Return the name under which the class of `thing` is registered.

        Parameters
        ----------
        thing : object

        Returns
        -------
        str

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
            f"{type(thing).__name__} is not a registered {self.kind}: decorate the class with "
            f"@{self.table}.register('name')"
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
            By name, without defaults that were not given, and without a family's member.

        Examples
        --------
        >>> import scoresde
        >>> scoresde.PROCESSES.options_of(scoresde.VPSDE(beta_max=10.0))
        {'beta_max': 10.0}
        """
        given = getattr(thing, "_options", {})
        return dict(list(given.items())[bool(self._families_of(thing)) :])

    def _families_of(self, thing: object) -> list[str]:
        """The prefixes of families that build things of this class."""
        return [prefix for prefix, maker in self._families.items() if maker is type(thing)]

    def __repr__(self) -> str:
        """Kind and names."""
        return f"<{self.kind} registry: {', '.join(self._makers)}>"

    def __contains__(self, name: object) -> bool:
        """Whether a name or alias is registered; members of families are not looked up."""
        return name in self._makers or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        """Names in the order of registration."""
        return iter(self._makers)

    def __getitem__(self, name: str) -> Callable[..., T]:
        """The class or factory of a name; a plug-in is imported."""
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
        """The error for an unknown name: the nearest one, and all that there are."""
        presets = [alias for alias, (_, options) in self._aliases.items() if options]
        meant = {
            plain_name(alias): alias if options else target
            for alias, (target, options) in self._aliases.items()
        }
        plugins = sorted(plugin_names(self.table) - {*self._makers, *self._aliases})
        near = meant.get(plain_name(name), name)
        text = nearest(near, self._makers, [*presets, *plugins])
        if presets:
            text += f" Presets: {', '.join(presets)}."
        if self._families:
            text += (
                f" Of other libraries: {', '.join(f'{prefix}:…' for prefix in self._families)}."
            )
        if plugins:
            text += f" Of plug-ins: {', '.join(plugins)}."
        return ValueError(f"unknown {self.kind} {brief_repr(name)}. {text}")

    def _load(self, name: str) -> None:
        """Import the plug-in of that name, if there is one, and register it."""
        plugin = load_plugin(self.table, self.kind, name)
        if plugin is None or name in self:
            return  # a plug-in may have registered itself while it was imported
        thing, packages = plugin
        for known, maker in self._makers.items():
            if maker is thing:
                self.alias(name, known)
                return
        if isinstance(thing, type):
            self.register(name)(thing)
        elif callable(thing):
            self.add(name, thing)
        else:
            raise TypeError(
                f"the {self.kind} {name!r} of {packages} is a {type(thing).__name__}, neither a "
                "class nor a function"
            )


def _place(maker: object) -> tuple[object, object]:
    """Module and name of a class: one defined again, in a notebook, may take its name again."""
    return getattr(maker, "__module__", None), getattr(maker, "__qualname__", maker)
