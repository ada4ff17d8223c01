"""`lathe rl`: reinforce a model by execution."""

from __future__ import annotations

import typer

from lathe.commands.training import RecipeFile, Resume, Sets


def rl(recipe: RecipeFile, sets: Sets = None, resume: Resume = False) -> None:
    """Reinforce a model: it attempts tasks, sandboxes run its answers, and it learns from what passed."""
    from lathe.config import load_recipe
    from lathe.train.rl_open import reinforce
    from lathe.train.rl_recipe import RLRecipe

    folder = reinforce(load_recipe(RLRecipe, recipe, sets or ()), resume=resume)
    typer.echo(f"{folder}: `lathe show {folder}` draws it, `lathe serve {folder / 'export'}` serves it")
