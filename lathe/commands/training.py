"""`lathe sft` and `lathe pretrain`: a recipe becomes a model."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file; see recipes/.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as train.lr=3e-5. May be repeated."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the recipe's run where it stopped.")]


def sft(recipe: RecipeFile, sets: Sets = None, resume: Resume = False) -> None:
    """Fine-tune a model on chats, tool calls, recorded rollouts or middles to fill in."""
    from rich.console import Console

    from lathe.config import load_recipe
    from lathe.terminal.progress import progress
    from lathe.train.parallel import joined
    from lathe.train.sft import SftRecipe, run_sft

    out = Console(stderr=True)
    loaded = load_recipe(SftRecipe, recipe, sets or ())
    with joined() as world:
        reading = (lambda: progress("Reading rows", out)) if world.is_first else nullcontext
        folder = run_sft(loaded, resume=resume, reading=reading, world=world)
        if world.is_first:
            out.print(f"{folder}: serve it with `lathe serve {folder}`", highlight=False, soft_wrap=True)


def pretrain(recipe: RecipeFile, sets: Sets = None, resume: Resume = False) -> None:
    """Train a model, new or not, on documents: the next token, and middles to fill in."""
    from rich.console import Console

    from lathe.config import load_recipe
    from lathe.terminal.progress import progress
    from lathe.train.parallel import joined
    from lathe.train.pretrain import PretrainRecipe, run_pretrain

    out = Console(stderr=True)
    loaded = load_recipe(PretrainRecipe, recipe, sets or ())
    with joined() as world:
        reading = (lambda: progress("Reading documents", out)) if world.is_first else nullcontext
        folder = run_pretrain(loaded, resume=resume, reading=reading, world=world)
        if world.is_first:
            out.print(f"{folder}: serve it with `lathe serve {folder}`", highlight=False, soft_wrap=True)
