"""Model folders: what is read from them, and a table of what is refused, each by name."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import ConfigError
from core.kv import SlabShape
from engine.checkpoint import open_checkpoint
from engine.hf_config import RopeConfig, RopeType, read_model_config
from engine.loading import ExecutorConfig, load_executor
from engine.model_info import LoadFormat, read_model_info


@pytest.fixture
def folder(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_folder("llama, 8 heads on 2", "60KB"), tmp_path / "model"))


@dataclass(frozen=True)
class Spoilt:
    """One way in which a folder is bad, and what the error must say."""

    name: str
    message: str
    spoil: Callable[[Path], object]


def config(**changes: object) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        edit(folder / "config.json", **changes)

    return spoil


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors(change: Callable[[dict[str, torch.Tensor]], object], of: str = "model.norm") -> Callable[[Path], object]:
    """Rewrite the tensors of the shard that holds this one."""

    def spoil(folder: Path) -> None:
        shard = shard_of(folder, of)
        held = load_file(shard)
        change(held)
        save_file(held, shard)

    return spoil


def shard_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][f"{name}.weight"]


def first_shard(folder: Path) -> Path:
    return shard_of(folder, "model.norm")


def only_pickles(folder: Path) -> None:
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")


def no_weights(folder: Path) -> None:
    only_pickles(folder)
    (folder / "pytorch_model.bin").unlink()


def rope(**parameters: object) -> Callable[[Path], object]:
    return config(rope_parameters={"rope_theta": 1e4, **parameters})


def cut(folder: Path) -> None:
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-10])


BAD = [
    Spoilt("no folder", "model folder .* does not exist", shutil.rmtree),
    Spoilt("no config", "config.json does not exist; a model folder needs it", lambda f: (f / "config.json").unlink()),
    Spoilt("broken config", "config.json cannot be read as JSON", lambda f: (f / "config.json").write_text("{")),
    Spoilt("config is a list", "config.json must hold a JSON object", lambda f: (f / "config.json").write_text("[]")),
    Spoilt("other family", r"model_type 'mamba'.*supported are llama \(.*qwen2.*qwen3", config(model_type="mamba")),
    Spoilt("no family", "model_type None", config(model_type=None)),
    Spoilt(
        "other head",
        r"\['LlamaForSequenceClassification'\] is not",
        config(architectures=["LlamaForSequenceClassification"]),
    ),
    Spoilt("activation", "hidden_act 'gelu' is not supported", config(hidden_act="gelu")),
    Spoilt("quantised", "quantization_config is set", config(quantization_config={"quant_method": "awq"})),
    Spoilt("window by layer", "sliding window", config(layer_types=["full_attention", "sliding_attention"])),
    Spoilt(
        "layers unknown", "layer_types must name 2 layers, each full_attention or", config(layer_types=["full"] * 2)
    ),
    Spoilt(
        "empty window", "sliding_window must be at least 1.*; got 0", config(model_type="mistral", sliding_window=0)
    ),
    Spoilt(
        "window is a word", "sliding_window must be.*; got 'all'", config(model_type="mistral", sliding_window="all")
    ),
    Spoilt(
        "window from a word on",
        "max_window_layers must be an integer, got 'half'",
        config(model_type="qwen2", use_sliding_window=True, sliding_window=8, max_window_layers="half"),
    ),
    Spoilt(
        "layers against keys",
        "layer_types contradicts the sliding window",
        config(model_type="mistral", sliding_window=8, layer_types=["full_attention", "sliding_attention"]),
    ),
    Spoilt(
        "layers slide without a window",
        "layer_types contradicts the sliding window",
        config(model_type="qwen2", layer_types=["full_attention", "sliding_attention"]),
    ),
    Spoilt("gemma 2", "model_type 'gemma2' .* it caps its logits and normalises after", config(model_type="gemma2")),
    Spoilt("gemma 3", "model_type 'gemma3_text' .* has two rotary embeddings", config(model_type="gemma3_text")),
    Spoilt(
        "shared expert",
        "model_type 'qwen2_moe' .* it has an expert that all tokens share",
        config(model_type="qwen2_moe"),
    ),
    Spoilt("looks ahead", "use_bidirectional_attention is set", config(use_bidirectional_attention=True)),
    Spoilt(
        "more experts a token than experts",
        r"num_experts_per_tok \(5\) must be at most num_experts \(4\)",
        config(model_type="qwen3_moe", num_experts=4, num_experts_per_tok=5),
    ),
    Spoilt(
        "more experts a token than local experts",
        r"num_experts_per_tok \(5\) must be at most num_local_experts \(4\)",
        config(model_type="mixtral", num_local_experts=4, num_experts_per_tok=5),
    ),
    Spoilt(
        "dense layers are a word",
        "mlp_only_layers must be a list of layers, got 'first'",
        config(model_type="qwen3_moe", mlp_only_layers="first"),
    ),
    Spoilt(
        "unknown rope",
        "rope_type 'proportional' is not supported; supported are default, linear, dynamic, llama3, yarn, longrope",
        rope(rope_type="proportional", factor=2.0),
    ),
    Spoilt("dynamic rope lacks factor", "rope: factor must be a positive", config(rope_scaling={"type": "dynamic"})),
    Spoilt(
        "longrope lacks factors",
        "short_factor must be a list of 4 positive numbers, got None",
        rope(rope_type="longrope", factor=2.0, long_factor=[1.0] * 4),
    ),
    Spoilt(
        "longrope of one position",
        "original_max_position_embeddings must be above 1",
        rope(rope_type="longrope", long_factor=[1.0] * 4, short_factor=[1.0] * 4, original_max_position_embeddings=1),
    ),
    Spoilt(
        "longrope has too few factors",
        "long_factor must be a list of 4 positive numbers, got a list of 3",
        rope(rope_type="longrope", factor=2.0, long_factor=[1.0] * 3, short_factor=[1.0] * 4),
    ),
    Spoilt("rope lacks factor", "rope: factor must be a positive number, got None", rope(rope_type="linear")),
    Spoilt(
        "rope is a word",
        "rope_scaling or rope_parameters must be an object or null, got 'yarn'",
        config(rope_scaling="yarn"),
    ),
    Spoilt(
        "rope by layer",
        "rope: full_attention has parameters of its own",
        rope(full_attention={"rope_type": "linear", "factor": 2.0}),
    ),
    Spoilt(
        "rope that does not turn", "rope_theta must be above 1, got 0.5", config(rope_parameters={"rope_theta": 0.5})
    ),
    Spoilt("partial rope", "partial_rotary_factor 0.5", rope(rope_type="default", partial_rotary_factor=0.5)),
    Spoilt(
        "llama3 bands",
        "high_freq_factor",
        rope(rope_type="llama3", factor=2.0, low_freq_factor=4.0, high_freq_factor=1.0),
    ),
    Spoilt("size is a word", "hidden_size must be a positive integer, got 'big'", config(hidden_size="big")),
    Spoilt(
        "heads",
        r"num_attention_heads \(8\) must be a multiple of num_key_value_heads \(3\)",
        config(num_key_value_heads=3),
    ),
    Spoilt("odd head", "head_dim must be even for rotary embedding, got 7", config(head_dim=7)),
    Spoilt("flag is a word", "tie_word_embeddings must be true or false, got 'no'", config(tie_word_embeddings="no")),
    Spoilt("type", "dtype 'int4' is not supported", config(dtype="int4")),
    Spoilt(
        "eos",
        "eos_token_id must be a token id or a list",
        lambda f: edit(f / "generation_config.json", eos_token_id="</s>"),
    ),
    Spoilt("pickles", "pickled weights only.*unpickling runs code", only_pickles),
    Spoilt("no weights", "holds no weights: neither model.safetensors nor", no_weights),
    Spoilt("missing shard", "shard .*model-0000.* is named in .* and missing", lambda f: first_shard(f).unlink()),
    Spoilt("cut shard", "it is cut short or damaged", cut),
    Spoilt("not a shard", "is not a safetensors file", lambda f: first_shard(f).write_bytes(b"no")),
    Spoilt(
        "index without map", "weight_map must map", lambda f: edit(f / "model.safetensors.index.json", weight_map={})
    ),
    Spoilt(
        "index leaves", "plain file name", lambda f: edit(f / "model.safetensors.index.json", weight_map={"a": "../x"})
    ),
    Spoilt(
        "moved tensor",
        "tensor model.norm.weight is not in model-0",
        tensors(lambda held: held.pop("model.norm.weight")),
    ),
    Spoilt(
        "shape",
        r"model.norm.weight has shape \(3,\)",
        tensors(lambda held: held.update({"model.norm.weight": torch.ones(3)})),
    ),
    Spoilt(
        "extra",
        "tensor lora.weight is unknown to a llama",
        tensors(lambda held: held.update({"lora.weight": torch.ones(3)})),
    ),
    Spoilt("int8", "has type I8", tensors(lambda h: h.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))),
    Spoilt("missing tensor", r"layers.2.mlp.up_proj.weight \(96, 64\) is missing", config(num_hidden_layers=3)),
    Spoilt("no head", r"lm_head.weight is not in model-0", tensors(lambda held: held.pop("lm_head.weight"), "lm_head")),
    Spoilt("missing bias", r"layers.0.self_attn.q_proj.bias \(64,\) is missing", config(attention_bias=True)),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_folder_is_refused_by_naming_what_is_wrong(bad: Spoilt, folder: Path) -> None:
    bad.spoil(folder)
    with pytest.raises(ConfigError, match=bad.message):
        read_model_info(folder)


def test_all_problems_of_a_config_are_told_together(folder: Path) -> None:
    edit(folder / "config.json", hidden_act="relu", vocab_size=0, quantization_config={})
    with pytest.raises(ConfigError) as raised:
        read_model_info(folder)
    assert len(raised.value.problems) == 3


def test_the_executor_refuses_what_the_reader_refuses(folder: Path) -> None:
    shape = SlabShape(read_model_info(folder).kv_layout(4, "float32"), 2)
    first_shard(folder).unlink()
    with pytest.raises(ConfigError, match="missing"):
        load_executor(ExecutorConfig(folder), bytearray(shape.total_bytes), shape)


@pytest.mark.parametrize(
    ("generation", "config_eos", "expected"),
    [(7, 1, {7}), ([7, 8], 1, {7, 8}), (None, [1, 2], {1, 2}), ([], 1, {1}), (None, None, set())],
)
def test_end_tokens_come_from_the_generation_config_first(
    generation: object, config_eos: object, expected: set[int], folder: Path
) -> None:
    edit(folder / "config.json", eos_token_id=config_eos)
    edit(folder / "generation_config.json", eos_token_id=generation)
    assert read_model_info(folder).eos_token_ids == expected
    (folder / "generation_config.json").unlink()
    assert generation or read_model_info(folder).eos_token_ids == expected


def test_old_and_new_spellings_of_rope_mean_the_same(folder: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    edit(folder / "config.json", rope_parameters={**scaling, "rope_theta": 5e5}, rope_scaling=None)
    new = read_model_config(folder)
    data = json.loads((folder / "config.json").read_text())
    del data["rope_parameters"]
    old = {**scaling, "type": scaling.pop("rope_type")}
    (folder / "config.json").write_text(json.dumps(data | {"rope_theta": 5e5, "rope_scaling": old}))
    assert read_model_config(folder) == new
    assert (new.rope.type, new.rope.theta, new.max_model_len) == (RopeType.YARN, 5e5, 256)
    edit(folder / "config.json", original_max_position_embeddings=32)
    assert read_model_config(folder).rope.original_max_position == 32
    edit(folder / "config.json", rope_scaling={}, attention_bias=None, head_dim=None)
    assert read_model_config(folder).rope == RopeConfig(RopeType.DEFAULT, 5e5)


def test_a_window_that_no_layer_uses_is_no_obstacle(folder: Path) -> None:
    edit(folder / "config.json", use_sliding_window=True, sliding_window=0, max_window_layers=2)
    assert read_model_config(folder).windows == (0, 0), "a llama never slides"
    edit(folder / "config.json", layer_types=["full_attention", "full_attention"], model_type="qwen2")
    assert read_model_config(folder).windows == (0, 0)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "lm_head", "model.layers.0.input_layernorm"])
def test_a_weight_that_is_no_number_is_refused_by_its_tensor(name: str, number: float, folder: Path) -> None:
    load(folder)
    tensors(lambda held: held[f"{name}.weight"].view(-1)[-3:-2].fill_(number), name)(folder)
    assert read_model_info(folder).num_layers == 2, "headers do not tell"
    with pytest.raises(ConfigError, match=f"tensor {name}.weight holds NaN or infinite numbers in float32"):
        load(folder)


def test_a_weight_that_does_not_fit_the_compute_type_is_refused_by_its_tensor(folder: Path) -> None:
    large = torch.full((64,), 1e300, dtype=torch.float64)
    tensors(lambda held: held.update({"model.norm.weight": large}))(folder)
    with pytest.raises(ConfigError, match=r"tensor model.norm.weight holds .* in float32"):
        load(folder)


def test_a_header_with_a_tensor_that_ends_before_it_starts_is_refused(folder: Path) -> None:
    shard = first_shard(folder)
    shard.write_bytes(re.sub(rb'"data_offsets":\[0,(\d+)\]', rb'"data_offsets":[\1,0]', shard.read_bytes(), count=1))
    with pytest.raises(ConfigError, match=r"is not a safetensors file \(.* lies from \d+ to 0\)"):
        read_model_info(folder)


def test_stored_frequencies_are_ignored(folder: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors(lambda held: held.update({name: torch.ones(4)}))(folder)
    assert read_model_info(folder).vocab_size == 128


def test_an_index_may_name_a_tensor_that_no_model_needs_and_no_shard_holds(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    save_file({}, folder / "empty.safetensors", metadata={"format": "pt"})
    edit(index, weight_map={**files, "model.layers.0.self_attn.rotary_emb.inv_freq": "empty.safetensors"})
    load(folder)


def test_of_two_copies_the_one_that_the_index_names_counts(folder: Path) -> None:
    names = open_checkpoint(folder).tensors
    copy = load_file(first_shard(folder))["model.norm.weight"] + 1
    for other in {shard_of(folder, name[: -len(".weight")]) for name in names} - {first_shard(folder)}:
        save_file(load_file(other) | {"model.norm.weight": copy}, other)
    assert open_checkpoint(folder).tensors["model.norm.weight"].shard == first_shard(folder)


def test_a_single_file_goes_before_an_index(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_folder("qwen2"), tmp_path / "model"))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    load(folder)


def test_a_second_copy_of_tied_embeddings_must_equal_the_first(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make_folder("qwen2, tied"), tmp_path / "model"))
    held = load_file(folder / "model.safetensors")
    head = held["model.embed_tokens.weight"].clone()
    save_file(held | {"lm_head.weight": head}, folder / "model.safetensors")
    load(folder)
    save_file(held | {"lm_head.weight": head + 1}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"tie_word_embeddings true, and lm_head.weight differs"):
        load(folder)


def load(folder: Path) -> None:
    shape = SlabShape(read_model_info(folder).kv_layout(4, "float32"), 2)
    load_executor(ExecutorConfig(folder), bytearray(shape.total_bytes), shape).close()


def test_the_digest_tells_weights_and_configs_apart(folder: Path, make_folder: Callable[..., Path]) -> None:
    digest = read_model_info(folder).digest
    assert digest == read_model_info(make_folder("llama, 8 heads on 2", "60KB")).digest
    tensors(lambda held: held["model.norm.weight"].add_(1.0))(folder)
    changed = read_model_info(folder).digest
    edit(folder / "config.json", rms_norm_eps=1e-4)
    assert len({digest, changed, read_model_info(folder).digest}) == 3


def test_dummy_weights_need_a_config_only(folder: Path) -> None:
    no_weights(folder)
    info = read_model_info(folder, LoadFormat.DUMMY)
    assert (info.num_kv_heads, info.head_dim, info.max_model_len) == (2, 8, 256)


def test_reading_a_model_needs_no_torch(folder: Path) -> None:
    program = (
        "import sys, pathlib, engine; from engine.model_info import read_model_info; "
        f"read_model_info(pathlib.Path({str(folder)!r})); "
        "assert not {'torch', 'numpy', 'safetensors', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert Path("engine/__init__.py").read_bytes() == b""
