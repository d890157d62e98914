"""The configuration files that come with the package, by short names: `base`, `table1/d`, `scale/pocket`."""

import shutil
from itertools import groupby
from pathlib import Path
from textwrap import shorten

from fpn.console import say
from fpn.errors import InputError

_CLONE, _WHEEL = Path(__file__).parents[2] / "configs", Path(__file__).parent / "configs"
CONFIGS = _CLONE if (_CLONE / "base.yaml").is_file() else _WHEEL
"""The folder of all of them: a clone's own, or the one in an installed package."""


def config_names() -> list[str]:
    """The names of all, as `table1/d_bottom_up_pyramid`."""
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def config_file(name: str) -> Path:
    """The file that a name means: a file of the user's, or one that travels with the package.

    Args:
        name: a path; or a name of `config_names`, with or without `configs/` before and `.yaml` behind it;
            or a table and the letter of a row of the paper, as `table1/d`.

    Raises:
        InputError: there is none.
    """
    if Path(name).is_file():
        return Path(name)
    stem = name.removeprefix("configs/").removesuffix(".yaml")
    if (exact := CONFIGS / f"{stem}.yaml").is_file():
        return exact
    # A row's file is headed by the table and the letter; our own variations of it say so.
    rows = sorted(CONFIGS.glob(f"{stem}_*.yaml"))
    of_letter = [path for path in rows if ", varied" not in path.read_text().partition("\n")[0]]
    if "/" in stem and len(of_letter) == 1:
        return of_letter[0]
    raise InputError(f"{name}: no such file, nor a configuration of this package; `fpn configs` lists them")


def configs(copy: str | None = None, out: str | None = None) -> None:
    """List the configurations that come with this package, or copy one to change it.

    examples:
        fpn configs
        fpn configs --copy table1/d
        fpn fit --config base --config d_bottom_up_pyramid.yaml

    Args:
        copy: the name of one, which is written to the working directory.
        out: the file to write it to, instead.
    """
    if copy is not None:
        source = config_file(copy)
        target = Path(out or source.name)
        if target.exists():
            raise InputError(f"{target} exists already: give another --out")
        shutil.copyfile(source, target)
        say(f"{source} copied to {target}")
        return
    # Those without a group first.
    every = sorted(config_names(), key=lambda name: ("/" in name, name))
    width = max(map(len, every))
    room = max(20, shutil.get_terminal_size((120, 24)).columns - width - 4)
    for group, names in groupby(every, lambda name: name.rpartition("/")[0]):
        say(f"\n{group or 'to begin with'}:")
        for name in names:
            head = config_file(name).read_text().partition("\n#\n")[0].splitlines()
            words = " ".join(line.removeprefix("#") for line in head if line.startswith("#"))
            say(f"  {name:{width}}  {shorten(words, room, placeholder=' …')}".rstrip())
