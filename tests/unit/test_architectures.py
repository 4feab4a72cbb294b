"""Members of each kind of model: states, noise, towers, positions, broken folders."""

import json

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    Phi3Config,
)

from benchmarks.tiny_models import PROMPTS, TEXT, VISION, settings
from benchmarks.tiny_models import build as build_listed
from capo_ds.architecture import check_positions, context_of, switch_length
from capo_ds.config import ConfigError, ModelConfig
from capo_ds.models import load_policy, load_tokenizer, reference_policy, token_log_probs
from capo_ds.rehearsal import rehearse
from capo_ds.rollout.base import Draw
from capo_ds.rollout.caches import select_rows
from capo_ds.rollout.hf import HuggingFaceSampler
from capo_ds.rollout.rollout import left_pad

STATES = ["qwen3_5_text", "qwen3_next", "lfm2", "mamba", "mamba2", "bamba", "falcon_h1"]
LET_PADDING_IN = ["rwkv", "recurrent_gemma", "xlstm", "minimax"]  # where it stands on the left
SHARED_LAYERS = ["zamba2"]
EXPERTS = ["mixtral", "phimoe", "gpt_oss", "granitemoe", "deepseek_v3"]
OTHERS = ["granite", "gemma3"]
# An indexer of which a ranking is all that is taken; buffers without tokens; positions in planes;
# an output layer that is called `decoder`.
NEWER = ["deepseek_v32", "deepseek_v4", "qwen4_exp_text", "modernbert-decoder"]
pytestmark = pytest.mark.usefixtures("process_group")


def saved(config, folder) -> str:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", STATES + LET_PADDING_IN + SHARED_LAYERS + EXPERTS + OTHERS + NEWER)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_rehearsal_finds_nothing(name, checkpointing, tmp_path):
    build_listed(name, tmp_path)
    config = settings(
        str(tmp_path), lora_targets="all-linear", gradient_checkpointing=checkpointing
    )
    policy = load_policy(config.model, seed=0)
    before = [p.detach().clone() for p in policy.parameters()]
    state = torch.get_rng_state()
    found = rehearse(config, policy, PROMPTS)
    assert found.repeated == 0
    assert max(found.alone, found.sampler) < 1e-5
    assert found.gradient < 1e-5
    assert torch.equal(state, torch.get_rng_state())  # it leaves no trace
    assert all(map(torch.equal, before, policy.parameters()))
    assert not any(module._forward_hooks for module in policy.modules())


@pytest.mark.parametrize("name", ["qwen3_5_text", "bamba", "lfm2", "mamba", *LET_PADDING_IN])
def test_states_are_batch_independent(name, tmp_path):
    build_listed(name, tmp_path)
    policy = load_policy(settings(str(tmp_path), lora_targets="all-linear").model, seed=0)

    def sample(prompts, first, batch_size):
        sampler = HuggingFaceSampler(policy, range(0, 199, 5), 0, 10, batch_size)
        draws = [Draw(0, 0, first + number) for number in range(len(prompts))]
        return sampler.sample(prompts, draws, 3, temperature=1.0)

    together, alone = sample(PROMPTS, 0, 64), sample(PROMPTS[1:], 1, 3)
    width = alone.completion_ids.shape[1]
    assert torch.equal(together.completion_ids[3:, :width], alone.completion_ids)
    assert len(set(together.lengths.tolist())) > 1  # some left the batch before others
    torch.testing.assert_close(together.log_probs[3:, :width], alone.log_probs)


@pytest.mark.parametrize("name", ["gpt2", "mamba", *LET_PADDING_IN])
def test_padding_never_reaches_a_row(name, tmp_path):
    build_listed(name, tmp_path)
    policy = load_policy(settings(str(tmp_path), lora_targets="all-linear").model, seed=0)
    rows = [PROMPTS[0], PROMPTS[1][:5]]
    ids, mask = left_pad(rows, 0, torch.device("cpu"))
    completion = torch.ones(2, 4, dtype=torch.bool)
    completion[1, 3] = False
    ids[1, -1], mask[1, -1] = 0, False  # its response is shorter
    found = token_log_probs(policy, ids, mask.long(), completion, temperature=1.0)
    for row, prompt in enumerate([rows[0], rows[1][:-1]]):
        logits = policy(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
        first = len(prompt) - int(completion[row].sum())
        expected = [logits[place - 1, prompt[place]] for place in range(first, len(prompt))]
        torch.testing.assert_close(found[row, : len(expected)], torch.stack(expected))
    assert found[1, 3] == 0


def test_prompts_share_a_batch_unless_padding_reaches_the_state(tmp_path):
    lengths = [2, 2, 3, 3, 3, 9]
    for name, parts in [("gpt2", [4, 2]), ("rwkv", [2, 3, 1])]:
        build_listed(name, tmp_path / name)
        policy = load_policy(settings(str(tmp_path / name), lora_targets="all-linear").model, 0)
        sampler = HuggingFaceSampler(policy, [0], 0, 4, 8)
        with torch.no_grad():
            batches = sampler._batches(lengths, 4)
        assert [len(lengths[batch]) for batch in batches] == parts


def test_a_layer_that_mixes_the_rows_of_a_batch_is_refused(random_model):
    config = settings(random_model)
    policy = load_policy(config.model, seed=0)
    layer = policy.get_base_model().get_decoder().layers[0].mlp
    layer.register_forward_hook(lambda _, __, output: output + output.mean(0, keepdim=True))
    with pytest.raises(ConfigError, match=r"qwen2.*rows beside it.*train\.micro_batch_size to 1"):
        rehearse(config, policy, PROMPTS)


def test_of_an_indexer_all_linear_takes_nothing(tmp_path):
    build_listed("deepseek_v32", tmp_path)
    policy = load_policy(settings(str(tmp_path), lora_targets="all-linear").model, seed=0)
    names = [name for name, _ in policy.named_parameters() if "lora_A" in name]
    assert any("q_a_proj" in name for name in names)
    assert not any("indexer" in name for name in names)
    assert not any(module._forward_hooks for module in policy.modules())


def test_layers_that_run_more_than_once_are_told(tmp_path):
    model = saved(AutoConfig.for_model("hrm_text", **TEXT | {"head_dim": 8}), tmp_path)
    with pytest.raises(ConfigError, match=r"model\.lora_targets: .*hrm_text .*choose another"):
        load_policy(settings(model, lora_targets="all-linear").model, seed=0)


def test_noise_in_a_pass_is_refused(random_model):
    config = settings(random_model)
    policy = load_policy(config.model, seed=0)
    layer = policy.get_base_model().get_decoder().layers[0].mlp
    layer.register_forward_hook(lambda _, __, output: output + 0.1 * torch.randn_like(output))
    with pytest.raises(ConfigError, match=r"qwen2 model cannot .* two passes .* draws random"):
        rehearse(config, policy, PROMPTS)


def test_tokens_that_the_model_does_not_know_are_refused(random_model):
    config = settings(random_model)
    policy = load_policy(config.model, seed=0)
    with pytest.raises(ConfigError, match="token 200, but the model knows 200"):
        rehearse(config, policy, [[1, 2, 200], [3, 4]])


def test_rows_of_any_cache_are_selected():
    class Layer:
        pass

    class SomeCache:
        pass

    inner, cache, shared = Layer(), SomeCache(), torch.arange(6.0).view(3, 2)
    inner.states, inner.length = {0: shared, 1: None}, torch.tensor(7)
    cache.layers, cache.more, cache.pair = [inner], [[], shared], (shared * 2, "text")
    select_rows(cache, 3, torch.tensor([2, 2, 0, 1]))
    expected = shared[[2, 2, 0, 1]]
    assert torch.equal(inner.states[0], expected)
    assert cache.more[1] is inner.states[0]  # shared before and after
    assert torch.equal(cache.pair[0], 2 * expected)
    assert inner.length == 7
    cache.position_ids = torch.arange(12).view(3, 2, 2)  # planes, rows, tokens
    cache.layers, cache.more, cache.pair = [torch.zeros(2, 0)], [], ()
    select_rows(cache, 2, torch.tensor([1, 1, 0]))
    assert cache.position_ids[0].tolist() == [[2, 3], [2, 3], [0, 1]]
    assert cache.layers[0].shape == (3, 0)  # a buffer without tokens has rows all the same
    cache.more = [torch.zeros(4, 2)]
    with pytest.raises(ValueError, match="shape"):
        select_rows(cache, 5, torch.tensor([0]))
    with pytest.raises(ValueError, match="no tensors"):
        select_rows(SomeCache(), 5, torch.tensor([0]))


def test_positions_that_switch_bound_the_context():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4}
    rope |= {"long_factor": [2.0] * 4, "original_max_position_embeddings": 64, "factor": 4.0}
    config = Phi3Config(**TEXT | {"rope_parameters": rope, "original_max_position_embeddings": 64})
    assert (switch_length(config), context_of(config)) == (64, 64)
    check_positions(config, 64)
    with pytest.raises(ConfigError, match=r"phi3 .*64 tokens.*rollout\.max_new_tokens"):
        check_positions(config, 65)
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert switch_length(LlamaConfig(**TEXT | {"rope_parameters": dynamic})) == 256
    assert switch_length(LlamaConfig(**TEXT)) is None


def test_towers_get_no_factors_and_the_text_config_counts(tmp_path):
    text = TEXT | {"head_dim": 16, "sliding_window": 8, "max_position_embeddings": 77}
    vision = VISION | {"model_type": "siglip_vision_model"}
    config = Gemma3Config(text_config=text, vision_config=vision)
    path = saved(config, tmp_path)
    assert context_of(config) == 77
    for targets in ("all-linear", ["q_proj", "fc1"], r".*\.(q_proj|fc1)"):
        policy = load_policy(ModelConfig(path=path, lora_rank=2, lora_targets=targets), seed=0)
        names = [name for name, p in policy.named_parameters() if p.requires_grad]
        assert names
        assert not [name for name in names if "vision" in name or "projector" in name]


def test_layers_are_excluded_by_name_and_pattern(random_model):
    for exclude in (["k_proj"], r".*\.k_proj"):
        config = ModelConfig(path=random_model, lora_rank=2, lora_exclude=exclude)
        names = get_peft_model_state_dict(load_policy(config, seed=0))
        assert any("q_proj" in name for name in names)
        assert not any("k_proj" in name for name in names)


def test_names_that_no_layer_has_are_told(random_model):
    def load(**keys):
        load_policy(ModelConfig(path=random_model, lora_rank=2, **keys), seed=0)

    with pytest.raises(ConfigError, match=r"model\.lora_targets: .*'qproj'.*k_proj.*all-linear"):
        load(lora_targets=["v_proj", "qproj"])
    for exclude in (["nothing"], r".*\.nothing"):
        with pytest.raises(ConfigError, match=r"model\.lora_exclude: no layer .*nothing"):
            load(lora_exclude=exclude)
    with pytest.raises(ConfigError, match=r"model\.lora_exclude: '\*x' is no regular"):
        load(lora_exclude="*x")


def test_what_is_inside_an_excluded_block_gets_none(random_model):
    keys = {"lora_targets": "all-linear", "lora_exclude": ["mlp"]}
    config = ModelConfig(path=random_model, lora_rank=2, **keys)
    names = get_peft_model_state_dict(load_policy(config, seed=0))
    assert names and all("self_attn" in name for name in names)


def test_router_noise_is_off_in_every_pass(tmp_path):
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.5}
    path = saved(MixtralConfig(**TEXT | sizes), tmp_path)
    policy = load_policy(ModelConfig(path=path, lora_rank=2), seed=0)
    ids = torch.arange(12).view(2, 6) + 3
    mask, completion = torch.ones_like(ids), torch.ones(2, 3, dtype=torch.bool)
    first, second = (token_log_probs(policy, ids, mask, completion, 1.0) for _ in range(2))
    assert torch.equal(first, second)


# ---------------------------------------------------------------- adapters


def trained_adapter(random_model, folder, **changes) -> ModelConfig:
    config = ModelConfig(path=random_model, lora_rank=3, lora_targets=["q_proj", "up_proj"])
    policy = load_policy(config.model_copy(update=changes), seed=0)
    generator = torch.Generator().manual_seed(3)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.3, generator=generator)
    policy.save_pretrained(folder)
    return ModelConfig(path=random_model, adapter=str(folder))


def log_probs(policy):
    ids = torch.arange(12).view(2, 6) + 3
    return token_log_probs(policy, ids, torch.ones_like(ids), torch.ones(2, 3).bool(), 1.0)


@torch.no_grad()
def test_a_run_starts_from_an_adapter_of_its_own_rank_and_targets(random_model, tmp_path):
    config = trained_adapter(random_model, tmp_path)
    policy = load_policy(config, seed=5)
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert {min(p.shape) for p in trained} == {3}
    fresh = load_policy(ModelConfig(path=random_model, lora_rank=3), seed=0)
    with reference_policy(policy):
        torch.testing.assert_close(log_probs(policy), log_probs(fresh))
    kept = log_probs(policy)
    assert not torch.allclose(kept, log_probs(fresh))
    own = load_policy(config.model_copy(update={"reference": "adapter"}), seed=5)
    for parameter in own.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    torch.testing.assert_close(log_probs(own), log_probs(fresh))  # the trained one has changed
    with reference_policy(own):
        torch.testing.assert_close(log_probs(own), kept)  # the reference has not
    torch.testing.assert_close(log_probs(own), log_probs(fresh))
    assert [n for n, p in own.named_parameters() if p.requires_grad and "reference" in n] == []


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"target_modules": ["zz"]}, "does not fit"),
        ({"lora_alpha": None}, "sets lora_alpha: None, no number above 0"),
        ({"alpha_pattern": {"q_proj": 0}}, "sets alpha_pattern.q_proj: 0, no number"),
        ({"r": 5}, "do not fit model.path: .*size mismatch"),
    ],
)
def test_adapters_that_cannot_go_on_are_refused(random_model, tmp_path, changed, word):
    config = trained_adapter(random_model, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(ConfigError, match=rf"model\.adapter.*{word}"):
        load_policy(config, seed=0)


def test_an_adapters_broken_weights_are_named(random_model, tmp_path):
    config = trained_adapter(random_model, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: w * float("nan") for name, w in weights.items()}, file)
    with pytest.raises(ConfigError, match=r"model\.adapter: .* NaN: .*lora_A"):
        load_policy(config, seed=0)
    cut(file)
    with pytest.raises(ConfigError, match=r"model\.adapter: .*safetensors .*download it again"):
        load_policy(config, seed=0)
    file.unlink()
    with pytest.raises(ConfigError, match=r"model\.adapter: .*has no weights .*adapter_model"):
        load_policy(config, seed=0)


def test_an_adapter_as_model_path_says_so(random_model, tmp_path):
    trained_adapter(random_model, tmp_path)
    with pytest.raises(ConfigError, match=r"is an adapter; set model\.adapter"):
        load_policy(ModelConfig(path=str(tmp_path)), seed=0)


def test_whole_weights_are_taken_as_they_are_whatever_lies_beside_them(tmp_path, capsys):
    """As `merge_and_unload().save_pretrained` leaves them in the adapter's own folder."""
    llama(tmp_path)
    before = load_policy(ModelConfig(path=str(tmp_path), lora_rank=2), seed=0)
    adapter = trained_adapter(str(tmp_path), tmp_path)
    capsys.readouterr()
    after = load_policy(ModelConfig(path=str(tmp_path), lora_rank=2), seed=0)
    told = " ".join(capsys.readouterr().err.split())
    assert "without it. If it is not merged into them, set model.adapter to the same fold" in told
    assert torch.equal(log_probs(after), log_probs(before))
    assert list(after.peft_config) == ["default"] and after.peft_config["default"].r == 2
    assert after.peft_config["default"].base_model_name_or_path == str(tmp_path)
    both = load_policy(adapter, seed=0)  # model.adapter is the same folder
    assert not torch.allclose(log_probs(both), log_probs(before), atol=1e-3)
    assert "without it" not in capsys.readouterr().err


# ---------------------------------------------------------------- broken folders


def llama(folder):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TEXT)).save_pretrained(folder)
    return folder / "model.safetensors"


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def cut_header(file):
    file.write_bytes(file.read_bytes()[:50])


def pointer(file):
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def no_header(file):
    file.write_bytes((8).to_bytes(8, "little") + b"no JSON!")


def link_to_nothing(file):
    file.unlink()
    file.symlink_to(file.with_name("gone"))


def shards_missing(file):
    file.with_name("model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (cut, r"model\.safetensors has"),
        (cut_header, r"model\.safetensors is cut off"),
        (pointer, r"model\.safetensors is a Git LFS pointer.*git lfs pull"),
        (lambda file: file.write_bytes(b"{}"), r"model\.safetensors is cut off"),
        (no_header, r"model\.safetensors is cut off"),
        (link_to_nothing, r"model\.safetensors is a link to nothing"),
        (lambda file: file.with_name("config.json").write_text(""), r"config\.json is empty"),
        (lambda file: file.with_name("config.json").write_text("{"), r"config\.json is no JSON"),
        (shards_missing, "index.json names 1 files, of which 1 are not there"),
    ],
)
def test_broken_weights_name_the_file_and_the_remedy(harm, word, tmp_path):
    harm(llama(tmp_path))
    with pytest.raises(ConfigError, match=rf"model\.path.*{word}"):
        load_policy(ModelConfig(path=str(tmp_path), lora_rank=2), seed=0)


def test_weights_of_another_architecture_are_refused(tmp_path):
    llama(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match=r"lack 9 of the tensors.*layers\.2"):
        load_policy(ModelConfig(path=str(tmp_path), lora_rank=2), seed=0)


def test_a_tokenizer_that_is_a_pointer_is_named(tmp_path):
    llama(tmp_path)
    pointer(tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is a Git LFS pointer"):
        load_tokenizer(str(tmp_path))


def test_code_of_a_models_own_is_not_run_unasked(tmp_path):
    llama(tmp_path)
    file = tmp_path / "config.json"
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    with pytest.raises(ConfigError, match=r"set model\.trust_remote_code to true"):
        load_policy(ModelConfig(path=str(tmp_path), lora_rank=2), seed=0)
