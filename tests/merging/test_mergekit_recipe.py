"""mergekit's recipes: what they become, and that everything else is refused at once, by its key path."""

import logging
from pathlib import Path

import pytest

from harness.errors import GraftbenchError
from harness.merging.mergekit_recipe import MergekitRecipe, read_mergekit_recipe
from methods.generalized_task_arithmetic import GeneralizedTaskArithmetic as Gta
from methods.schedules import Rule

TIES = """
merge_method: ties
base_model: org/base
models:
  - model: org/base
  - model: org/math
    parameters: {weight: 0.7, density: 0.5}
  - model: ./code
    parameters: {weight: -0.3}
parameters: {density: 0.2, lambda: 0.9}
dtype: bfloat16
"""


def read(tmp_path: Path, text: str, seed: int = 0) -> MergekitRecipe:
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return read_mergekit_recipe(file, seed)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(GraftbenchError) as refusal:
        read(tmp_path, text)
    return str(refusal.value)


def test_a_models_own_parameters_count_before_general_ones(tmp_path: Path) -> None:
    recipe = read(tmp_path, TIES)
    assert recipe.method == Gta(
        weight={"math": 0.7, "code": -0.3},
        density={"math": 0.5, "code": 0.2},
        select="magnitude",
        elect=True,
        normalize=True,
        scale=0.9,
    )
    assert recipe.base == "org/base"
    assert recipe.experts == {"math": "org/math", "code": "./code"}
    assert (recipe.dtype, recipe.vocabulary) == ("bfloat16", None)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("linear", Gta(origin="zero", normalize=True, weight={"b": 1.0, "x": 1.0})),
        ("task_arithmetic", Gta(weight={"x": 1.0})),
        ("ties", Gta(select="magnitude", elect=True, normalize=True, weight={"x": 1.0}, density={"x": 1.0})),
        ("dare_linear", Gta(select="random", rescale=True, seed=5, weight={"x": 1.0}, density={"x": 1.0})),
        ("dare_ties", Gta(select="random", rescale=True, elect=True, seed=5, weight={"x": 1.0}, density={"x": 1.0})),
    ],
)
def test_mergekits_defaults(tmp_path: Path, method: str, expected: Gta) -> None:
    text = f"{{merge_method: {method}, base_model: b, models: [{{model: b}}, {{model: x}}], parameters: {{weight: 1}}}}"
    assert read(tmp_path, text, seed=5).method == expected


def test_gradients_and_filters_are_kept_as_written(tmp_path: Path) -> None:
    text = """
merge_method: dare_ties
base_model: base
models:
  - model: a
    parameters:
      weight: [0, 0.5, "1e0"]
      density:
        - {filter: mlp, value: [0.1, 0.9]}
        - {filter: self_attn, value: 0.3}
  - model: b
    parameters: {weight: [{filter: '*', value: 2}], density: {value: 0.4}}
parameters:
  density: [{filter: norm, value: 1}, {value: 0.6}, {filter: never, value: 0.1}]
  rescale: "no"
  int8_mask: true
"""
    method = read(tmp_path, text).method
    assert method.weight == {"a": [0.0, 0.5, 1.0], "b": 2.0}
    # What the model's own filters leave out, the general ones decide.
    rules = [Rule([0.1, 0.9], "mlp"), Rule(0.3, "self_attn"), Rule(1.0, "norm"), Rule(0.6)]
    assert method.density == {"a": rules, "b": 0.4}
    assert not method.rescale


def test_an_average_takes_the_base_as_one_input_more(tmp_path: Path) -> None:
    recipe = read(tmp_path, "{merge_method: linear, base_model: o/x, models: [{model: y}], parameters: {weight: 1}}")
    assert recipe.experts == {"y": "y", "x": "o/x"} and recipe.base == "o/x"
    recipe = read(tmp_path, "{merge_method: linear, models: [{model: y}, {model: z}], parameters: {weight: 1}}")
    assert recipe.experts == {"y": "y", "z": "z"} and recipe.base == "y"


def test_experts_are_named_by_their_paths(tmp_path: Path) -> None:
    sources = ["org/m@v1.0", "/models/math/final", "/models/code/final/", "base", "o/b+adapters/lora", "org2/m"]
    models = "".join(f"  - model: {source}\n" for source in sources)
    recipe = read(tmp_path, f"merge_method: linear\nmodels:\n{models}parameters: {{weight: 1}}\n")
    assert recipe.experts == dict(
        zip(["org-m", "math-final", "code-final", "base-2", "lora", "org2-m"], sources, strict=True)
    )


def test_models_written_in_parts(tmp_path: Path) -> None:
    text = """
merge_method: linear
models:
  - model: {model: {path: org/m, revision: v1}}
  - model: {model: org/m, lora: {path: org/lora}}
parameters: {weight: 1}
"""
    assert read(tmp_path, text).experts == {"m": "org/m@v1", "lora": "org/m+org/lora"}


@pytest.mark.parametrize(
    ("line", "dtype"), [("dtype: float16", "float16"), ("dtype: float32\nout_dtype: torch.bfloat16", "bfloat16")]
)
def test_the_output_has_the_output_dtype(tmp_path: Path, line: str, dtype: str) -> None:
    assert read(tmp_path, TIES.replace("dtype: bfloat16", line)).dtype == dtype


@pytest.mark.parametrize(
    ("line", "vocabulary"),
    [
        ("tokenizer_source: union", "union"),
        ("tokenizer_source: base", "base"),
        ("tokenizer_source: org/base", "base"),
        ("tokenizer: {source: base}", "base"),
        ("tokenizer: {}", "union"),
    ],
)
def test_a_tokenizers_source_says_how_vocabularies_are_matched(tmp_path: Path, line: str, vocabulary: str) -> None:
    assert read(tmp_path, TIES + line).vocabulary == vocabulary


def test_a_slice_that_is_the_whole_model_is_read(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"num_hidden_layers": 4}')
    text = f"""
merge_method: task_arithmetic
base_model: {base}
slices:
  - sources:
      - {{model: {base}, layer_range: [0, 4]}}
      - {{model: x, layer_range: [0, 4], parameters: {{weight: 2}}}}
"""
    assert read(tmp_path, text).method == Gta(weight={"x": 2.0})
    wrong = refused(tmp_path, text.replace("x, layer_range: [0, 4]", "x, layer_range: [0, 3]"))
    assert "slices[0].sources[1].layer_range: [0, 3]" in wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("merge_method: ties", "merge_method: slerp"), "merge_method: there is no 'slerp' here"),
        (("merge_method: ties", "merge_method: tie"), "did you mean 'ties'"),
        (("base_model: org/base", ""), "base_model is missing, which ties needs"),
        (("dtype: bfloat16", "dtype: float64"), "dtype: there is no 'float64' here"),
        (("dtype: bfloat16", "dtyp: bfloat16"), "dtyp: mergekit has no such key; did you mean 'dtype'"),
        (("dtype: bfloat16", "chat_template: chatml"), "chat_template: it is taken from a tokenizer here"),
        (("dtype: bfloat16", "tokenizer_source: org/other"), "tokenizer_source: the tokenizer of org/other is not"),
        (("dtype: bfloat16", "tokenizer: {tokens: {a: {}}}"), "tokenizer.tokens: changing tokens by hand"),
        (("dtype: bfloat16", "tokenizer: {pad_to_multiple_of: 8}"), "tokenizer.pad_to_multiple_of: "),
        (("dtype: bfloat16", "modules: {text: {}}"), "modules: merging parts of a model"),
        (("weight: 0.7", "wieght: 0.7"), "models[1].parameters.wieght: there is no such parameter; did you mean"),
        (("weight: 0.7,", ""), "models[1].parameters.weight: missing"),
        (
            ("weight: 0.7", "weight: [{filter: mlp, value: 1}]"),
            "models[1].parameters.weight: there is no value for tensors that no filter fits",
        ),
        (("weight: 0.7", "weight: much"), "models[1].parameters.weight: 'much' is no finite number"),
        (("weight: 0.7", "weight: [1, .nan]"), "models[1].parameters.weight[1]: nan is no finite number"),
        (("weight: 0.7", "weight: []"), "models[1].parameters.weight is an empty list"),
        (("weight: 0.7", "weight: [{filter: mlp}]"), "models[1].parameters.weight[0]: {'filter': 'mlp'} is no entry"),
        (("density: 0.5", "density: [0.5, 1.2]"), "models[1]: its density must lie in 0..1"),
        (("density: 0.2", "normalize: [true, false]"), "parameters.normalize: it cannot differ by layer"),
        (("density: 0.2", "normalize: maybe"), "parameters.normalize: 'maybe' is neither true nor false"),
        (("./code", "org/math"), "models: org/math stands there 2 times"),
        (("model: ./code", "modle: ./code"), "models[2]: "),
        (("- model: ./code", "- {model: ./code, filter: x}\n  - model: z"), "models[2]: "),
    ],
)
def test_what_is_not_available_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in TIES
    assert message in refused(tmp_path, TIES.replace(*change))


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    told = refused(tmp_path, TIES.replace("ties", "sce").replace("0.7", "x") + "chat_template: auto\nslices: []\n")
    assert [line.split(":")[0].strip() for line in told.splitlines()[1:]] == ["chat_template", "merge_method", "models"]


def test_layers_are_not_stacked(tmp_path: Path) -> None:
    text = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 24]}]
  - sources: [{model: b, layer_range: [8, 32]}]
"""
    told = refused(tmp_path, text)
    assert "slices: stacking or reordering layers is not available" in told and "'passthrough'" in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is no YAML file of one document"),
        ("a: 1\n---\nb: 1", "is no YAML file of one document"),
        ("models: []", "is no mergekit recipe"),
        ("merge_method:", "is no mergekit recipe"),
        ("merge_method: [ties]\nmodels: 3", "merge_method: there is no"),
        ("merge_method: ties\nbase_model: b\nmodels: []", "models: [] is no list of models"),
        ("merge_method: ties\nbase_model: b\nmodels: [{model: b}]", "there is none besides the base"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraftbenchError, match=r"nothing\.yaml cannot be read: No such file"):
        read_mergekit_recipe(tmp_path / "nothing.yaml")


def test_what_mergekit_ignores_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = TIES.replace("weight: -0.3", "weight: -0.3, normalize: false").replace(
        "model: org/base\n  -", "model: org/base\n    parameters: {weight: 1}\n  -"
    )
    with caplog.at_level(logging.WARNING):
        method = read(tmp_path, text).method
    assert method.normalize and isinstance(method.weight, dict) and method.weight.keys() == {"math", "code"}
    assert "models[2].parameters.normalize has no effect: for ties mergekit does not read it" in caplog.text
    assert "models[0].parameters.weight has no effect: this model is the base" in caplog.text
