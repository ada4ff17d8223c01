"""`lathe sft` and `lathe pretrain`: a recipe becomes a model."""

from __future__ import annotations

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
    from lathe.train.sft import SftRecipe, run_sft

    out = Console(stderr=True)
    loaded = load_recipe(SftRecipe, recipe, sets or ())
    folder = run_sft(loaded, resume=resume, reading=lambda: progress("Reading rows", out))
    out.print(f"{folder}: serve it with `lathe serve {folder}`", highlight=False, soft_wrap=True)


def pretrain(recipe: RecipeFile, sets: Sets = None, resume: Resume = False) -> None:
    """Train a model, new or not, on documents: the next token, and middles to fill in."""
    from rich.console import Console

    from lathe.config import load_recipe
    from lathe.terminal.progress import progress
    from lathe.train.pretrain import PretrainRecipe, run_pretrain

    out = Console(stderr=True)
    loaded = load_recipe(PretrainRecipe, recipe, sets or ())
    folder = run_pretrain(loaded, resume=resume, reading=lambda: progress("Reading documents", out))
    out.print(f"{folder}: serve it with `lathe serve {folder}`", highlight=False, soft_wrap=True)
