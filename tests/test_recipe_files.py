"""Recipes: what is read is what was meant, what isn't understood is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.config import dump, load_recipe
from lathe.errors import ConfigError, UserError


@dataclass(frozen=True)
class Warmup:
    steps: int = 10
    shape: Literal["linear", "cosine"] = "linear"


@dataclass(frozen=True)
class Train:
    lr: float = 1e-3
    clip: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    muon: bool = False
    warmup: Warmup = Warmup(steps=3)
    lora: Warmup | None = None

    def __post_init__(self):
        if self.lr < 0:
            raise ValueError("lr is negative")


@dataclass(frozen=True)
class Recipe:
    model: str
    train: Train = field(default_factory=Train)
    data: tuple[Path, ...] = ()
    out: Path = Path("here")
    weights: Mapping[str, float] = field(default_factory=dict)
    extras: dict[str, Warmup] = field(default_factory=dict)
    note: str | None = None
    seed: int | str = 0


def load(tmp_path, text, *sets, cls=Recipe):
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return load_recipe(cls, path, sets)


def refusal(tmp_path, text, *sets):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *sets)
    return str(caught.value).replace(f"{tmp_path}/", "").replace("(agent.toml, line", "(line")


def test_a_tree_of_dataclasses(tmp_path):
    recipe = load(
        tmp_path,
        """
        model = "Qwen/Qwen3-Coder"
        data = ["a.jsonl", "/b.jsonl"]
        weights = {python = 1, "c++" = 0.5}
        [train]
        lr = 1
        clip = "none"
        warmup.shape = "cosine"
        [extras.first]
        steps = 1
        """,
    )
    assert recipe == Recipe(
        model="Qwen/Qwen3-Coder",
        data=(tmp_path / "a.jsonl", Path("/b.jsonl")),
        out=tmp_path / "here",
        weights={"python": 1.0, "c++": 0.5},
        train=Train(lr=1.0, clip=None, warmup=Warmup(steps=3, shape="cosine")),
        extras={"first": Warmup(steps=1)},
    )
    assert type(recipe.train.lr) is float


def test_sets_lie_over_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    recipe = load(
        tmp_path / "recipes",
        'model = "a"\n[train]\nlr = 1.0\nmuon = true',
        "model=Qwen/Qwen3",
        "train.lr=2",
        "train.lr = 3e-4",
        "train.warmup={steps=7}",
        'weights."c++"=2',
        "data=['mine.jsonl']",
        "note=a = b",
    )
    assert recipe.model == "Qwen/Qwen3"
    assert recipe.train == Train(lr=3e-4, muon=True, warmup=Warmup(steps=7))
    assert recipe.weights == {"c++": 2.0}
    assert recipe.data == (tmp_path / "mine.jsonl",)  # from where it was typed
    assert recipe.note == "a = b"


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        (
            'model = "a"\n\n[train]\nlrr = 1',
            (),
            "train.lrr is not a setting (line 4). Did you mean train.lr?",
        ),
        ('model = "a"\nlr = 1', (), "lr is not a setting (line 2). Did you mean train.lr?"),
        (
            'model = "a"\ntrain = {lr = 1, warmup = {stops = 1}}',
            (),
            "train.warmup.stops is not a setting (line 2). Did you mean train.warmup.steps?",
        ),
        (
            'model = "a"\n[extras.x]\nzzz = 1',
            (),
            "extras.x.zzz is not a setting (line 3). [extras.x] has steps, shape.",
        ),
        (
            'model = "a"',
            ("train.lrr=1",),
            "train.lrr is not a setting (--set train.lrr=1). Did you mean train.lr?",
        ),
        ("# none\n", (), "model is missing (agent.toml). Add it there, or with --set model=…"),
        ("model = 3", (), "model is 3, but text in quotes is wanted (line 1)."),
        (
            'note = """\na = 1\n"""\nmodel = "a"\ntrain.muon = 1',
            (),
            "train.muon is 1, but true or false is wanted (line 5).",
        ),
        (
            'model = "a"\n[train.warmup]\nsteps = true',
            (),
            "train.warmup.steps is true, but a whole number is wanted (line 3).",
        ),
        (
            'model = "a"\n[train]\nwarmup = 3',
            (),
            "train.warmup is 3, but a table of settings ([train.warmup]) is wanted (line 3).",
        ),
        (
            'model = "a"\n[train.warmup]\nshape = "square"',
            (),
            'train.warmup.shape is "square", but one of "linear", "cosine" is wanted (line 3).',
        ),
        ('model = "a"\ndata = [\n"x",\n2]', (), "data.1 is 2, but a path in quotes is wanted (line 2)."),
        ('model = "a"\ntrain.betas = [1]', (), "train.betas is [1], but a list of 2 is wanted (line 2)."),
        ('model = "a"\ntrain.betas = 1', (), "train.betas is 1, but a list is wanted (line 2)."),
        (
            'model = "a"\ntrain.lr = 1' + "0" * 400,
            (),
            f"train.lr is 1{'0' * 79}, but a smaller number is wanted (line 2).",
        ),
        ('model = "a"\n[train]\nlr = -1', (), "train: lr is negative (line 2)"),
        ('model = "a"', ("model.x=1",), "--set model.x=1: model is one value, not a table of settings."),
        ('model = "a"', ("model",), "--set model: write it as KEY=VALUE, as in train.lr=3e-4."),
        ('model = "a"', ("=1",), "--set =1: write it as KEY=VALUE, as in train.lr=3e-4."),
        ('model = "a"', ("data=[1",), "--set data=[1: the value is no TOML; is a bracket or a quote open?"),
        ('model = "a', (), "agent.toml is no TOML: "),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path, text, sets, message):
    assert refusal(tmp_path, text, *sets).startswith(message)


def test_a_missing_file_is_the_users_error(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UserError, match=f"{path}.*name a recipe"):
            load_recipe(Recipe, path)
    (tmp_path / "latin.toml").write_bytes(b'model = "\xff"')
    with pytest.raises(UserError, match=r"latin\.toml can't be read"):
        load_recipe(Recipe, tmp_path / "latin.toml")


def test_a_set_can_not_smuggle_a_second_one(tmp_path):
    assert load(tmp_path, "", "model=a\nnote = 1").model == "a\nnote = 1"


# Floats without nan, which equals nothing, itself included.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.floats(allow_nan=False)
paths = st.from_regex(r"/[a-z \"\\]{1,8}", fullmatch=True).map(Path)
warmups = st.builds(Warmup, steps=st.integers(), shape=st.sampled_from(["linear", "cosine"]))
trains = st.builds(
    Train,
    lr=st.floats(min_value=0),
    clip=st.none() | numbers,
    betas=st.tuples(numbers, numbers),
    muon=st.booleans(),
    warmup=warmups,
    lora=st.none() | warmups,
)
recipes = st.builds(
    Recipe,
    model=texts,
    train=trains,
    data=st.lists(paths, max_size=3).map(tuple),
    out=paths,
    weights=st.dictionaries(texts, numbers, max_size=3),
    extras=st.dictionaries(texts, warmups, max_size=3),
    note=st.none() | texts.filter(lambda text: text != "none"),
    seed=st.integers() | texts,
)


@given(recipes)
def test_a_dumped_recipe_reads_back_equal(tmp_path_factory, recipe):
    path = tmp_path_factory.getbasetemp() / "dumped.toml"
    path.write_text(dump(recipe), encoding="utf-8", newline="")
    assert load_recipe(Recipe, path) == recipe


def test_a_dumped_recipe_is_good_to_read(tmp_path):
    recipe = load(tmp_path, 'model = "a"', "train.lora={}", "weights={b=1}")
    assert (
        dump(recipe)
        == f"""\
model = "a"
data = []
out = "{tmp_path}/here"
note = "none"
seed = 0

[train]
lr = 0.001
clip = 1.0
betas = [0.9, 0.95]
muon = false

[train.warmup]
steps = 3
shape = "linear"

[train.lora]
steps = 10
shape = "linear"

[weights]
b = 1.0

[extras]
"""
    )
